"""Check bundles against a checkpoint or a golden, component by component and step by step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import final

import triptych
from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.parity.budget import Budget, accepted, read_budget, write_budget
from triptych.parity.candidate import Candidate
from triptych.parity.check import Checked, check, unavailable_report, with_verdicts
from triptych.parity.check_options import CheckOptions, Limits
from triptych.parity.fingerprint import take_fingerprint
from triptych.parity.floors import Arithmetic, arithmetic_of, floor_table
from triptych.parity.golden import is_golden, read_golden
from triptych.parity.golden_manifest import Profile
from triptych.parity.limits import coarsest
from triptych.parity.odd_one_out import find_odd_one_out
from triptych.parity.preconditions import (
    bundle_facts,
    check_preconditions,
    precondition_texts,
)
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import (
    CandidateReport,
    ParityReport,
    ReferenceRecord,
    SettingValue,
    overall,
)
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.pytorch import Pytorch
from triptych.sampling.prompt_encoding import Prompts
from triptych.types import ComponentName, ImagePixels, Precision
from triptych.workflows.callback_import import import_image_metric
from triptych.workflows.check_candidates import find_candidates
from triptych.workflows.record import (
    RunRequest,
    open_reference,
    record_reference,
    run_settings,
    with_floors,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What to check, and against what.

    Attributes:
        bundle: the candidate; or a folder that holds one bundle for each format, as export
            writes them.
        reference: the checkpoint it was made from, or a golden recording of it.
        runtimes: the candidates' engines; empty takes the one that reads each bundle's format.
        runtime_settings: their device, precision, threads.
        judged_as: the class that every component is judged in; None takes what each declares.
        budget: a file of accepted limits; None has none.
        accept: write what was measured into the budget.
        explain: run the reference on the candidate's latents too.
        pictures: decode some steps' pictures.
        image_metrics: functions that measure the last picture besides, as `module:function`.
        reference_settings: PyTorch's device, for a checkpoint.
        run: what the reference draws, for a checkpoint; None takes the usual.
        profile: for a checkpoint: quick does not measure what a precision costs in PyTorch.
        variant: the reference's weight variant.
        preview_decoder: the folder of the reference's preview decoder, where that is elsewhere.
        command: what was typed, for the record.
    """

    bundle: Path
    reference: Path
    runtimes: Sequence[str] = ()
    runtime_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    judged_as: Precision | None = None
    budget: Path | None = None
    accept: bool = False
    explain: bool = False
    pictures: bool = False
    image_metrics: Sequence[str] = ()
    reference_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    run: RunRequest | None = None
    profile: Profile = "full"
    variant: str | None = None
    preview_decoder: Path | None = None
    command: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """A check, and what is looked at beside it.

    Attributes:
        report: the evidence and its verdict.
        pictures: by participant, the reference first, and by step.
    """

    report: ParityReport
    pictures: Mapping[str, Mapping[int, ImagePixels]]


def check_bundle(request: CheckRequest, *, report: StageReporter) -> CheckOutcome:
    """Check every candidate against the reference, which a checkpoint is recorded for first.

    Where a candidate's engine is not installed or cannot run here, nothing has passed: its report
    says so, row by row.

    Raises:
        UsageError: an option that does not go with the reference, or an engine that reads none of
            the bundles.
        BundleError: a bundle is incomplete or corrupt.
        GoldenError: the golden is incomplete or corrupt.
        IncomparableError: reference and candidate are not the same model, schedule or noise.
        BackendError: PyTorch, or a device, is missing.
        NonFiniteError: the reference itself gives NaN or infinity.
        OutputError: the budget cannot be written.
    """
    report("opening")
    budget = _budget(request)
    metrics = {name: import_image_metric(name) for name in request.image_metrics}
    found = find_candidates(request.bundle, request.runtimes, request.runtime_settings)
    recording, checkpoint = _reference(request, [one.bundle for one in found], report=report)
    candidates = tuple(_judged_as(one, request.judged_as, recording) for one in found)
    limits = Limits(floors=floor_table(recording.floors), budget=budget)
    options = CheckOptions(
        limits=limits,
        reference=checkpoint if request.explain else None,
        reference_runtime=Pytorch(settings=request.reference_settings) if request.explain else None,
        reference_name=str(request.reference),
        pictures=request.pictures,
        image_metrics=metrics,
    )
    checked = [_checked(one, recording, options, report) for one in candidates]
    if checkpoint is not None and request.profile == "full" and recording.precision == "fp32":
        recording = with_floors(
            recording,
            checkpoint,
            request.reference_settings,
            _needed_floors(one.report for one in checked),
            report=report,
        )
        limits = replace(limits, floors=floor_table(recording.floors))
    reports = [with_verdicts(one.report, recording, limits) for one in checked]
    if request.accept and request.budget is not None:
        limits = replace(limits, budget=_accepted(budget, reports, request.budget))
        reports = [with_verdicts(one, recording, limits) for one in reports]
    return CheckOutcome(
        report=_parity_report(request, recording, reports, checked, is_golden=checkpoint is None),
        pictures=_pictures(recording, checked) if request.pictures else {},
    )


def _budget(request: CheckRequest) -> Budget:
    if request.budget is None:
        if request.accept:
            raise UsageError("accept: got --accept without --budget, want the file to write.")
        return Budget()
    if request.accept and not request.budget.exists():
        return Budget()
    return read_budget(request.budget)


def _reference(
    request: CheckRequest, bundles: Sequence[Bundle], *, report: StageReporter
) -> tuple[Recording, Bundle | None]:
    """The recording, and the checkpoint that it is of, where that is at hand."""
    if is_golden(request.reference):
        _check_golden_options(request)
        return read_golden(request.reference), None
    checkpoint = open_reference(
        request.reference, variant=request.variant, preview_decoder=request.preview_decoder
    )
    for bundle in bundles:  # before anything runs
        check_preconditions(
            bundle_facts(bundle),
            bundle_facts(checkpoint),
            candidate=str(bundle.folder),
            reference=str(request.reference),
        )
    sizes = [bundle.built_size_px for bundle in bundles if bundle.built_size_px is not None]
    settings = run_settings(
        checkpoint, request.run or RunRequest(), size_px=sizes[0] if sizes else None
    )
    low_memory = request.runtime_settings.low_memory
    recording = record_reference(
        checkpoint,
        settings,
        replace(request.reference_settings, low_memory=low_memory),
        pictures=request.pictures,
        report=report,
    )
    return recording, checkpoint


def _check_golden_options(request: CheckRequest) -> None:
    """A golden has its run; what would change it is refused, and so is what needs the weights."""
    changed = {
        "the run's settings": request.run is not None,
        "--variant": request.variant is not None,
        "--preview-decoder": request.preview_decoder is not None,
        "--reference-device": request.reference_settings != RuntimeSettings(),
        "--explain": request.explain,
    }
    given = [name for name, is_given in changed.items() if is_given]
    if given:
        raise UsageError(
            f"reference: got the golden {request.reference} with {', '.join(given)}, want neither: "
            "it was recorded as it is, and holds no weights. Give the checkpoint instead, or "
            "record another golden."
        )


def _judged_as(
    candidate: Candidate, judged_as: Precision | None, recording: Recording
) -> Candidate:
    """Judged in what it declares, or is said to be; at best in what the reference computed in."""
    precisions: dict[ComponentName, Precision] = {
        name: coarsest([judged_as or declared, recording.precision])
        for name, declared in candidate.precisions.items()
    }
    return replace(candidate, precisions=precisions)


def _checked(
    candidate: Candidate, recording: Recording, options: CheckOptions, report: StageReporter
) -> Checked:
    probe = candidate.runtime.probe()
    if not probe.installed:
        return Checked(report=unavailable_report(candidate, reason=probe.remedy))
    return check(recording, candidate, options=options, report=report)


def _needed_floors(reports: Iterable[CandidateReport]) -> list[Arithmetic]:
    wanted = {
        arithmetic_of(row.precision, row.ran)
        for report in reports
        for row in report.rows
        if row.has_numbers
    }
    return sorted(arithmetic for arithmetic in wanted if arithmetic is not None)


def _accepted(budget: Budget, reports: Sequence[CandidateReport], path: Path) -> Budget:
    rows = {report.runtime: report.rows for report in reports}
    changed = accepted(budget, rows, take_fingerprint())
    write_budget(changed, path)
    return changed


def _parity_report(
    request: CheckRequest,
    recording: Recording,
    reports: Sequence[CandidateReport],
    checked: Sequence[Checked],
    *,
    is_golden: bool,
) -> ParityReport:
    latents = {
        report.runtime: one.last_latents
        for report, one in zip(reports, checked, strict=True)
        if one.last_latents is not None
    }
    ran = [report.verdict for report in reports if not report.unavailable]
    return ParityReport(
        triptych=triptych.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        reference=ReferenceRecord(
            kind="golden" if is_golden else "checkpoint",
            name=str(request.reference),
            created=recording.created,
            execution=recording.execution,
            fingerprint=recording.fingerprint,
            floors=tuple(sorted({floor.arithmetic for floor in recording.floors})),
        ),
        fingerprint=take_fingerprint(),
        settings=_settings(recording),
        preconditions=precondition_texts(recording.preconditions),
        candidates=tuple(reports),
        odd_one_out=find_odd_one_out({"reference": recording.latents[-1], **latents}),
        verdict=overall(ran),
    )


def _settings(recording: Recording) -> dict[str, SettingValue]:
    settings = recording.settings
    prompts = settings.prompts.prompt if isinstance(settings.prompts, Prompts) else ()
    height_px, width_px = recording.image.shape[2:]
    return {
        "prompt": prompts,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "scheduler": settings.scheduler.name,
        "height_px": height_px,
        "width_px": width_px,
        "seeds": settings.seeds,
    }


def _pictures(
    recording: Recording, checked: Sequence[Checked]
) -> dict[str, Mapping[int, ImagePixels]]:
    return {
        "reference": recording.pictures,
        **{one.report.runtime: one.pictures for one in checked if one.pictures},
    }
