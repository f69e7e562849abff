"""Record the reference once, to check against anywhere."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BrokenInputError, UsageError
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.floors import ARITHMETICS, Arithmetic, floors_from_rows
from triptych.parity.golden import write_golden
from triptych.parity.golden_manifest import Profile
from triptych.parity.record import RecordingOptions, default_settings, record
from triptych.parity.recording import Recording, StageReporter
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.pytorch import Pytorch
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.types import Precision
from triptych.workflows.diffusers_schedulers import read_any_sampler


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The run that a reference is recorded on. None takes what `default_settings` says.

    Attributes:
        prompts: what is asked for.
        num_inference_steps: of the run.
        guidance_scale: of the run.
        scheduler: which one, where it is not simply the checkpoint's.
        seed: of its noise.
        height_px: of its picture.
        width_px: of its picture.
    """

    prompts: Prompts | None = None
    num_inference_steps: int = 8
    guidance_scale: float | None = None
    scheduler: SchedulerChoice = field(default_factory=SchedulerChoice)
    seed: int = 0
    height_px: int | None = None
    width_px: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRequest:
    """What to record.

    Attributes:
        checkpoint: the reference, in diffusers layout.
        golden: the folder to write.
        run: what it draws.
        runtime_settings: PyTorch's device, precision and threads.
        profile: one run, or also what lower precisions cost.
        variant: the checkpoint's weight variant.
        preview_decoder: the folder of its preview decoder, where that is elsewhere.
        overwrite: replace a golden that exists.
        command: what was typed, for the record.
    """

    checkpoint: Path
    golden: Path
    run: RunRequest = field(default_factory=RunRequest)
    runtime_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    profile: Profile = "quick"
    variant: str | None = None
    preview_decoder: Path | None = None
    overwrite: bool = False
    command: tuple[str, ...] = ()


def record_golden(request: RecordRequest, *, report: StageReporter) -> Recording:
    """Run the reference with PyTorch and write what it gave.

    Returns:
        The recording, as it was written.

    Raises:
        UsageError: a folder that exists, or floors of a run that is not in fp32.
        CheckpointError: the checkpoint is not whole, or not SDXL.
        BrokenInputError: the reference is no checkpoint.
        BackendError: PyTorch or the device is missing.
        NonFiniteError: the reference gives NaN or infinity.
    """
    precision = request.runtime_settings.precision or "fp32"
    if request.profile == "full" and precision != "fp32":
        raise UsageError(
            f"profile: got full with precision {precision}, want quick, or fp32: what lower "
            "precisions cost is counted from fp32."
        )
    if request.golden.exists() and not request.overwrite:
        raise UsageError(
            f"{request.golden}: got a path that exists, want a new one. "
            "Give another folder, or --overwrite to replace it as a whole."
        )
    report("opening")
    bundle = open_reference(
        request.checkpoint, variant=request.variant, preview_decoder=request.preview_decoder
    )
    recording = record_reference(
        bundle, run_settings(bundle, request.run), request.runtime_settings, report=report
    )
    if request.profile == "full":
        recording = with_floors(
            recording, bundle, request.runtime_settings, ARITHMETICS, report=report
        )
    report("writing")
    write_golden(
        recording,
        request.golden,
        profile=request.profile,
        command=request.command,
        overwrite=request.overwrite,
    )
    return recording


def open_reference(path: Path, *, variant: str | None, preview_decoder: Path | None) -> Bundle:
    """Open a checkpoint to be the reference.

    Raises:
        BrokenInputError: it is a bundle in another format.
    """
    reference = open_bundle(path, variant=variant, preview_decoder=preview_decoder)
    if reference.format != "diffusers":
        raise BrokenInputError(
            f"{path}: got a bundle in {reference.format} format as the reference, "
            "want the checkpoint in diffusers layout."
        )
    return reference


def run_settings(
    bundle: Bundle, run: RunRequest, *, size_px: tuple[int, int] | None = None
) -> Settings:
    """The settings of a recorded run.

    Args:
        bundle: the reference.
        run: what is asked for.
        size_px: height and width that a candidate makes and no other, where none is asked for.

    Raises:
        UsageError: a height without a width, or the other way round.
    """
    if (run.height_px is None) != (run.width_px is None):
        raise UsageError("size: got one of --height-px and --width-px, want both or neither.")
    if run.height_px is not None and run.width_px is not None:
        size_px = run.height_px, run.width_px
    usual = default_settings(
        bundle.config,
        num_inference_steps=run.num_inference_steps,
        seed=run.seed,
        size_px=size_px,
    )
    return replace(
        usual,
        prompts=run.prompts or usual.prompts,
        guidance_scale=usual.guidance_scale if run.guidance_scale is None else run.guidance_scale,
        scheduler=run.scheduler,
    )


def record_reference(
    bundle: Bundle,
    settings: Settings,
    runtime_settings: RuntimeSettings,
    *,
    pictures: bool = True,
    report: StageReporter,
) -> Recording:
    """Record a checkpoint with PyTorch."""
    return record(
        bundle,
        Pytorch(settings=runtime_settings),
        settings,
        options=RecordingOptions(pictures=pictures, make_sampler=read_any_sampler),
        report=report,
    )


def with_floors(
    recording: Recording,
    bundle: Bundle,
    runtime_settings: RuntimeSettings,
    arithmetics: Iterable[Arithmetic],
    *,
    report: StageReporter,
) -> Recording:
    """The recording with what lower precisions cost: PyTorch, checked as any candidate is.

    Args:
        recording: in fp32.
        bundle: the checkpoint.
        runtime_settings: device and threads.
        arithmetics: which; those that were measured before are not measured again.
        report: told the stages.
    """
    known = {floor.arithmetic for floor in recording.floors}
    floors = list(recording.floors)
    for arithmetic in (name for name in arithmetics if name not in known):
        candidate = Candidate(
            bundle=bundle,
            runtime=pytorch_in(arithmetic, runtime_settings),
            precisions=dict.fromkeys(bundle.artifacts, declared_in(arithmetic)),
            make_sampler=read_any_sampler,
        )
        report(f"what {arithmetic} costs")
        found = check(recording, candidate, report=lambda _: None)
        floors += floors_from_rows(found.report.rows, arithmetic)
    return replace(recording, floors=tuple(floors))


def declared_in(arithmetic: Arithmetic) -> Precision:
    """The class in which a candidate of that arithmetic is judged."""
    return "bf16" if arithmetic == "bf16" else "fp16"


def pytorch_in(arithmetic: Arithmetic, settings: RuntimeSettings) -> Pytorch:
    """PyTorch computing so, to measure what it costs."""
    if arithmetic == "fp16_weights":
        return Pytorch(settings=replace(settings, precision="fp32"), rounded_weights="fp16")
    return Pytorch(settings=replace(settings, precision=arithmetic))
