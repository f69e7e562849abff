"""What compression costs, measured on a bundle before it appears, for its manifest."""

import math
from collections.abc import Sequence
from pathlib import Path

from triptych.bundle.bundle import Bundle, bundle_from_checkpoint
from triptych.bundle.manifest import Distance, MeasuredParity, read_manifest
from triptych.errors import VerificationError
from triptych.models.checkpoint import Checkpoint
from triptych.models.sdxl import SdxlConfig
from triptych.parity.check import check
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import CandidateReport, Row
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.prompt_encoding import Prompts
from triptych.types import ComponentName
from triptych.workflows.check_candidates import find_candidates
from triptych.workflows.record import RunRequest, record_reference, run_settings
from triptych.workflows.verify import LEAN_PARAMETERS

MEASURE_STEPS = 4
"""Steps of the run: errors feed back from the first on, and every one costs a guided call of the
U-Net five times over: by PyTorch, on PyTorch's latents, in the bundle's own run, and in feeds."""

_LONGEST_EDGE_PX = 512
"""Of the picture where the bundle makes any size: a quarter of what SDXL's own costs."""


def measure_parity(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    engine_name: str,
    num_inference_steps: int,
    report: StageReporter,
) -> MeasuredParity:
    """Check a bundle against float32 PyTorch and keep the figures that tell most.

    Limits decide nothing here: every component has passed its own. What no figure describes, as
    NaN on the way or an engine that computed in something else, is an error.

    Args:
        folder: the bundle, with a manifest.
        checkpoint: what it was made from.
        engine_name: what runs it.
        num_inference_steps: of the run.
        report: told the stages.

    Raises:
        VerificationError: something failed that is not a matter of distance.
        BackendError: an engine is missing, or could not run.
        NonFiniteError: the reference gives NaN or infinity.
    """
    num_parameters = (record.num_parameters for record in read_manifest(folder).components)
    memory = RuntimeSettings(low_memory=max(num_parameters) > LEAN_PARAMETERS)
    (candidate,) = find_candidates(folder, (engine_name,), memory)
    reference = bundle_from_checkpoint(checkpoint)
    run = RunRequest(num_inference_steps=num_inference_steps)
    settings = run_settings(reference, run, size_px=_size_px(candidate.bundle, checkpoint.config))
    recording = record_reference(reference, settings, memory, pictures=False, report=report)
    found = check(recording, candidate, report=report).report
    _refuse_faults(found)
    return _measured(found, recording)


def _size_px(bundle: Bundle, config: SdxlConfig) -> tuple[int, int]:
    """The only size that a bundle makes, or a small one."""
    edge = min(config.sample_size * config.vae_scale_factor, _LONGEST_EDGE_PX)
    return bundle.built_size_px or (edge, edge)


def _refuse_faults(report: CandidateReport) -> None:
    for row in report.rows:
        is_distance = row.rel_l2 is not None and math.isfinite(row.rel_l2)
        if row.verdict == "failed" and not is_distance:
            raise VerificationError(
                f"{row.component}, {row.stage} of {row.case or 'the bundle'}: got {row.reason}, "
                "want figures that say what compression costs. The bundle was not written."
            )


def _measured(report: CandidateReport, recording: Recording) -> MeasuredParity:
    settings = recording.settings
    height_px, width_px = recording.image.shape[2:]
    steps = [row for row in report.rows if row.stage == "free_running" and row.has_numbers]
    worst = max(steps, key=_rel_l2, default=None)
    image = next((row for row in report.rows if row.stage == "image" and row.has_numbers), None)
    components: dict[ComponentName, list[Row]] = {}
    for row in report.rows:
        if row.stage == "component" and row.has_numbers:
            components.setdefault(row.component, []).append(row)
    execution = next(iter(report.executions.values()))
    return MeasuredParity(
        engine=report.runtime,
        engine_version=execution.version,
        reference=f"{recording.execution.runtime} {recording.execution.version}",
        prompts=settings.prompts.prompt if isinstance(settings.prompts, Prompts) else (),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        seeds=settings.seeds,
        height_px=height_px,
        width_px=width_px,
        components={name: _distance(rows) for name, rows in components.items()},
        trajectory=_distance(steps[-1:]) if steps else None,
        worst_step=None if worst is None else worst.step,
        worst_step_rel_l2=None if worst is None else worst.rel_l2,
        image=None if image is None else _distance([image]),
        image_ssim=None if image is None else image.ssim,
    )


def _distance(rows: Sequence[Row]) -> Distance:
    """The worst of several comparisons."""
    psnr_db = min((row.psnr_db for row in rows if row.psnr_db is not None), default=math.inf)
    return Distance(
        rel_l2=max(_rel_l2(row) for row in rows),
        psnr_db=psnr_db if math.isfinite(psnr_db) else None,
    )


def _rel_l2(row: Row) -> float:
    return math.nan if row.rel_l2 is None else row.rel_l2
