"""The candidate's side of a check: every stage in its order, on values and without a framework."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, BlankPictureError, NonFiniteError
from triptych.parity.budget import Budget
from triptych.parity.candidate import Candidate
from triptych.parity.compare import compare
from triptych.parity.components import (
    ComponentEvidence,
    component_evidence,
    contract_rows,
    not_run_row,
)
from triptych.parity.floors import FloorTable
from triptych.parity.gates import Gates, judged
from triptych.parity.hints import find_hints
from triptych.parity.image_metrics import image_psnr_db, ssim
from triptych.parity.preconditions import (
    Fact,
    bundle_facts,
    check_preconditions,
    find_preconditions,
)
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import (
    STAGES,
    CandidateReport,
    Row,
    Stage,
    overall,
    with_comparison,
)
from triptych.parity.trajectory import (
    Path,
    free_path,
    free_running_rows,
    self_state_predictions,
    self_state_rows,
    stopped_rows,
    teacher_forced_path,
    teacher_forced_rows,
)
from triptych.runtimes.base import Execution, Runtime
from triptych.sampling.decode import check_not_blank, pixels_from_image
from triptych.sampling.pipeline import Prepared, decode, prepare
from triptych.types import ComponentName, ImageFloats, ImagePixels, Latents

_RUN_STAGES: tuple[tuple[Stage, ComponentName], ...] = (
    ("teacher_forced", "unet"),
    ("free_running", "unet"),
    ("image", "vae_decoder"),
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What decides a verdict beside what was measured.

    Attributes:
        floors: what a precision costs in PyTorch.
        budget: what somebody accepted.
    """

    floors: FloorTable = field(default_factory=FloorTable)
    budget: Budget = field(default_factory=Budget)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """How much is looked at.

    Attributes:
        limits: what rows are held to.
        reference: the reference itself, to run it on the candidate's latents; None does not.
        reference_runtime: what it runs on.
        reference_name: for messages.
        pictures: decode the pictures of some steps.
    """

    limits: Limits = field(default_factory=Limits)
    reference: Bundle | None = None
    reference_runtime: Runtime | None = None
    reference_name: str = "the reference"
    pictures: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A candidate's report, and what is looked at beside it.

    Attributes:
        report: the evidence and its verdict.
        last_latents: of its run; None where it did not come to its end.
        pictures: by step.
    """

    report: CandidateReport
    last_latents: Latents | None = None
    pictures: Mapping[int, ImagePixels] = field(default_factory=dict)


def check(
    recording: Recording,
    candidate: Candidate,
    *,
    options: CheckOptions | None = None,
    report: StageReporter,
) -> Checked:
    """Compare a candidate with a recording.

    A component that gives NaN or infinity, or that its engine cannot run at some size, fails that
    row, and the check goes on.

    Args:
        recording: the reference.
        candidate: what is checked.
        options: how much is looked at, and what it is held to.
        report: told the stages.

    Raises:
        IncomparableError: the two runs share no ground.
        BundleError: an artifact cannot be read.
        BackendError: the engine is missing.
    """
    wanted = options or CheckOptions()
    run = _Run(recording=recording, candidate=candidate, options=wanted, report=report)
    _check_ground(run, bundle_facts(candidate.bundle))
    prepared, ground = _prepared(run)
    components = {name: _component(run, name) for name in candidate.bundle.config.components}
    executions = {
        name: found.execution for name, found in components.items() if found.execution is not None
    }
    rows = [row for found in components.values() for row in found.rows]
    trajectory = _trajectory(run, prepared, executions)
    evidence = CandidateReport(
        runtime=candidate.runtime.name,
        bundle=candidate.bundle.folder.name,
        format=candidate.bundle.format,
        executions=executions,
        self_difference={name: found.self_difference for name, found in components.items()},
        rows=(*ground, *rows, *trajectory.rows),
    )
    return Checked(
        report=with_verdicts(evidence, recording, wanted.limits),
        last_latents=trajectory.last_latents,
        pictures=trajectory.pictures,
    )


def with_verdicts(report: CandidateReport, recording: Recording, limits: Limits) -> CandidateReport:
    """The verdicts of all rows, in the order of the stages, and what follows from them.

    What was measured stays, so that it can be judged again by other limits.
    """
    gates = Gates(
        runtime=report.runtime,
        guidance_scale=recording.settings.guidance_scale,
        floors=limits.floors,
        budget=limits.budget,
        self_difference=report.self_difference,
    )
    ordered = sorted((judged(row, gates) for row in report.rows), key=_stage_number)
    diverged = [row.step for row in ordered if _has_diverged(row)]
    return replace(
        report,
        rows=tuple(ordered),
        first_divergent_step=min((step for step in diverged if step is not None), default=None),
        hints=find_hints(ordered),
        verdict=overall(row.verdict for row in ordered),
    )


def unavailable_report(candidate: Candidate, *, reason: str) -> CandidateReport:
    """The report where the engine cannot run here: nothing but the files was looked at."""
    rows: list[Row] = []
    for component in candidate.bundle.artifacts:
        row = not_run_row(candidate, "component", component, reason)
        rows.extend(contract_rows(row, candidate))
        rows.append(row)
    rows += [not_run_row(candidate, *about, reason) for about in _RUN_STAGES]
    return CandidateReport(
        runtime=candidate.runtime.name,
        bundle=candidate.bundle.folder.name,
        format=candidate.bundle.format,
        rows=tuple(sorted(rows, key=_stage_number)),
        unavailable=reason,
        verdict=overall(row.verdict for row in rows),
    )


def _stage_number(row: Row) -> int:
    return STAGES.index(row.stage)


def _has_diverged(row: Row) -> bool:
    return row.stage == "free_running" and row.verdict == "failed"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What every stage is given."""

    recording: Recording
    candidate: Candidate
    options: CheckOptions
    report: StageReporter


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Trajectory:
    rows: tuple[Row, ...] = ()
    last_latents: Latents | None = None
    pictures: Mapping[int, ImagePixels] = field(default_factory=dict)


def _component(run: _Run, name: ComponentName) -> ComponentEvidence:
    run.report(f"{run.candidate.runtime.name}: {name}")
    return component_evidence(run.recording, run.candidate, name)


def _prepared(run: _Run) -> tuple[Prepared | None, tuple[Row, ...]]:
    """The candidate's run before its first step, once it is seen to be the reference's.

    Text encoders that cannot run leave nothing to compare; the components' rows say so.
    """
    candidate, recording = run.candidate, run.recording
    run.report(f"{candidate.runtime.name}: preconditions")
    if not candidate.is_whole:
        return None, ()
    try:
        prepared = prepare(
            candidate.bundle,
            candidate.runtime,
            recording.candidate_settings,
            make_sampler=candidate.make_sampler,
        )
    except (NonFiniteError, BackendError):
        return None, ()
    facts = find_preconditions(candidate.bundle, prepared)
    _check_ground(run, facts)
    row = not_run_row(candidate, "precondition", "unet", "")
    return prepared, (replace(row, case=f"{len(facts)} facts, exactly equal", verdict="passed"),)


def _check_ground(run: _Run, facts: Mapping[str, Fact]) -> None:
    expected = run.recording.preconditions
    kinds = {name.partition(".")[0] for name in facts}
    check_preconditions(
        facts,
        {name: fact for name, fact in expected.items() if name.partition(".")[0] in kinds},
        candidate=str(run.candidate.bundle.folder),
        reference=run.options.reference_name,
    )


def _trajectory(
    run: _Run, prepared: Prepared | None, executions: Mapping[ComponentName, Execution]
) -> _Trajectory:
    """L, F, on request S, and the picture."""
    candidate, recording = run.candidate, run.recording
    if prepared is None:
        reason = "a text encoder failed" if candidate.is_whole else "the bundle is not whole"
        return _Trajectory(
            rows=tuple(not_run_row(candidate, *about, reason) for about in _RUN_STAGES)
        )
    ran = executions["unet"].precision if "unet" in executions else ""
    run.report(f"{candidate.runtime.name}: teacher-forced steps")
    forced = teacher_forced_path(recording, candidate, prepared)
    run.report(f"{candidate.runtime.name}: its own run")
    path = free_path(candidate, prepared)
    rows = [
        *stopped_rows(candidate, forced, run="teacher-forced"),
        *stopped_rows(candidate, path, run="the candidate's own run"),
        *teacher_forced_rows(recording, candidate, prepared, forced, ran=ran),
        *free_running_rows(recording, candidate, prepared, path, additive=forced.latents, ran=ran),
        *_self_state_rows(run, prepared, path, ran=ran),
    ]
    if path.stopped_by:
        reason = f"the run stopped at step {len(path.noise_preds) + 1}"
        return _Trajectory(rows=(*rows, not_run_row(candidate, "image", "vae_decoder", reason)))
    image_rows, pictures = _pictures(run, path, ran=ran)
    return _Trajectory(rows=(*rows, *image_rows), last_latents=path.latents[-1], pictures=pictures)


def _self_state_rows(run: _Run, prepared: Prepared, path: Path, *, ran: str) -> Iterator[Row]:
    options = run.options
    if options.reference is None or options.reference_runtime is None:
        return
    run.report("reference: on the candidate's latents")
    predictions = self_state_predictions(
        run.recording,
        path,
        prepared,
        reference=options.reference,
        runtime=options.reference_runtime,
    )
    yield from self_state_rows(run.candidate, prepared, path, predictions, ran=ran)


def _pictures(
    run: _Run, path: Path, *, ran: str
) -> tuple[tuple[Row, ...], Mapping[int, ImagePixels]]:
    """The last picture, compared as floats; and the others, for people to look at."""
    candidate, recording = run.candidate, run.recording
    run.report(f"{candidate.runtime.name}: pictures")
    last = len(path.latents) - 1
    steps = sorted({*recording.pictures, last}) if run.options.pictures else [last]
    about = replace(
        not_run_row(candidate, "image", "vae_decoder", ""),
        case="the run's picture",
        step=last,
        precision=candidate.run_precision,
        ran=ran,
    )
    latents = {str(step): path.latents[step] for step in steps}
    try:
        images = decode(candidate.bundle, candidate.runtime, latents)
    except (NonFiniteError, BackendError) as error:
        stage: Stage = "finiteness" if isinstance(error, NonFiniteError) else "image"
        failed = replace(about, stage=stage, verdict="failed", reason=str(error))
        return (failed,), {}
    pixels = {step: pixels_from_image(images[str(step)]) for step in steps}
    return (image_row(about, images[str(last)], recording.image),), pixels


def image_row(about: Row, actual: ImageFloats, expected: ImageFloats) -> Row:
    """One picture against the reference's; one of a single colour has failed."""
    found = compare(actual, expected, component="vae_decoder", tensor="image")
    row = replace(
        with_comparison(about, found),
        psnr_db=image_psnr_db(actual, expected),
        ssim=ssim(actual, expected),
    )
    blank = _blankness(actual)
    if blank and not _blankness(expected):
        return replace(row, rel_l2=None, verdict="failed", reason=blank)
    return row


def _blankness(image: ImageFloats) -> str:
    """What is to be said of a picture of one colour; nothing of any other."""
    try:
        check_not_blank(image)
    except BlankPictureError as error:
        return str(error)
    return ""
