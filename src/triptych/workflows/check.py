"""Check a bundle against a checkpoint, component by component and step by step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.errors import BrokenInputError
from triptych.exporters import make_exporter
from triptych.models.configs import read_json
from triptych.parity.check import Candidate, check, unavailable_report
from triptych.parity.limits import coarsest
from triptych.parity.recording import StageReporter, default_settings, record
from triptych.parity.report import ParityReport
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.types import PRECISIONS, ComponentName, Precision
from triptych.workflows.contract import contract_problems
from triptych.workflows.diffusers_schedulers import read_any_sampler
from triptych.workflows.runtime_choice import choose_runtime

_DTYPE_PRECISIONS: Mapping[str, Precision] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "int8",
    "uint8": "int8",
    **{name: name for name in PRECISIONS if name.startswith("palette")},
}

_MAY_DIFFER = ("has_preview_decoder",)
"""Settings in which a bundle and its reference may differ: either may have been given one alone."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What to check, and against what.

    Attributes:
        bundle: the candidate.
        reference: the checkpoint it was made from.
        runtime: the candidate's engine; None takes the one that reads its format.
        runtime_settings: the candidate's device, precision, threads.
        reference_device: where PyTorch runs the reference.
        num_inference_steps: of the trajectory.
        seed: of its noise.
        variant: the reference's weight variant.
        preview_decoder: the folder of the reference's preview decoder, where that is elsewhere.
    """

    bundle: Path
    reference: Path
    runtime: str | None = None
    runtime_settings: RuntimeSettings
    reference_device: str = "cpu"
    num_inference_steps: int = 8
    seed: int = 0
    variant: str | None = None
    preview_decoder: Path | None = None


def check_bundle(request: CheckRequest, *, report: StageReporter) -> ParityReport:
    """Record the reference with PyTorch in float32, then check the candidate against it.

    Where the candidate's engine is not installed or cannot run here, nothing has passed: the report
    says so, row by row.

    Raises:
        BundleError: the bundle is incomplete or corrupt.
        BrokenInputError: the two are not of the same model, and cannot be compared.
        BackendError: PyTorch, or a device, is missing.
        NonFiniteError: the reference itself gives NaN or infinity.
    """
    report("opening")
    candidate_bundle = open_bundle(request.bundle)
    candidate_bundle.check_files()
    reference = open_bundle(
        request.reference, variant=request.variant, preview_decoder=request.preview_decoder
    )
    _check_comparable(candidate_bundle, reference)
    candidate = Candidate(
        bundle=candidate_bundle,
        runtime=choose_runtime(candidate_bundle, request.runtime, request.runtime_settings),
        precisions=declared_precisions(candidate_bundle, request.runtime_settings),
        make_sampler=read_any_sampler,
    )
    problems = contract_problems(candidate_bundle)
    probe = candidate.runtime.probe()
    if not probe.installed:
        return unavailable_report(candidate, reason=probe.remedy, problems=problems)
    settings = default_settings(
        reference.config,
        num_inference_steps=request.num_inference_steps,
        seed=request.seed,
        size_px=candidate_bundle.built_size_px,
    )
    reference_runtime = make_runtime("pytorch", RuntimeSettings(device=request.reference_device))
    recording = record(
        reference,
        reference_runtime,
        settings,
        built_for={name: part.fixed_axes for name, part in candidate_bundle.artifacts.items()},
        make_sampler=read_any_sampler,
        report=report,
    )
    return check(recording, candidate, problems=problems, report=report)


def declared_precisions(
    bundle: Bundle, settings: RuntimeSettings
) -> dict[ComponentName, Precision]:
    """The class each component is judged in: of its weights, or of the arithmetic asked for.

    Weights are what the manifest says, or what most of them are; the coarser of the two counts.
    """
    return {
        name: _declared_precision(artifact, settings) for name, artifact in bundle.artifacts.items()
    }


def _declared_precision(artifact: Artifact, settings: RuntimeSettings) -> Precision:
    return coarsest([_stored_precision(artifact), settings.precision or "fp32"])


def _stored_precision(artifact: Artifact) -> Precision:
    if artifact.record is not None:
        return artifact.record.precision
    if artifact.format == "diffusers":
        return "fp32"  # as the pytorch runtime loads them unless another is asked for
    dtypes = make_exporter(artifact.format).describe(*artifact.paths).weight_dtypes
    known = {name: count for name, count in dtypes.items() if name in _DTYPE_PRECISIONS}
    if not known:
        raise BrokenInputError(
            f"{artifact.path}: got weights of {', '.join(dtypes) or 'no dtype'}, "
            f"want {', '.join(_DTYPE_PRECISIONS)}."
        )
    return _DTYPE_PRECISIONS[max(known, key=lambda name: known[name])]


def _check_comparable(candidate: Bundle, reference: Bundle) -> None:
    if reference.format != "diffusers":
        raise BrokenInputError(
            f"{reference.folder}: got a bundle in {reference.format} format as the reference, "
            "want the checkpoint in diffusers layout."
        )
    differing = [
        f"{name} {getattr(candidate.config, name)!r} and {getattr(reference.config, name)!r}"
        for name in candidate.config.__slots__
        if name not in _MAY_DIFFER
        and getattr(candidate.config, name) != getattr(reference.config, name)
    ]
    if differing:
        raise BrokenInputError(
            f"{candidate.folder}: cannot be compared with {reference.folder}, "
            f"their configs differ: {'; '.join(differing)}."
        )
    scheduler = Path("scheduler") / "scheduler_config.json"
    if not _same_json(candidate.folder / scheduler, reference.folder / scheduler):
        raise BrokenInputError(
            f"{candidate.folder}: cannot be compared with {reference.folder}, "
            "their scheduler_config.json differ, so their steps are at other noise levels."
        )


def _same_json(first: Path, second: Path) -> bool:
    private = "_diffusers_version"
    left, right = ({**read_json(path), private: None} for path in (first, second))
    return left == right
