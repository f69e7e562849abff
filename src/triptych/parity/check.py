"""The candidate's side of a check: every stage in its order, on values and without a framework."""

from dataclasses import dataclass, field, replace
from typing import final

from triptych.parity.candidate import Candidate
from triptych.parity.check_options import CheckOptions, Limits
from triptych.parity.check_stages import (
    RUN_STAGES,
    CheckRun,
    Pictures,
    check_ground,
    check_size,
    look_at,
    path_rows,
    picture_evidence,
    prepared_run,
    run_paths,
)
from triptych.parity.components import contract_rows, not_run_row
from triptych.parity.gates import Gates, judged
from triptych.parity.hints import find_hints
from triptych.parity.preconditions import bundle_facts
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import STAGES, CandidateReport, Row, overall
from triptych.types import Latents


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
    pictures: Pictures = field(default_factory=dict)


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
    run = CheckRun(recording=recording, candidate=candidate, options=wanted, report=report)
    check_ground(run, bundle_facts(candidate.bundle))
    check_size(run)
    config = candidate.bundle.config
    with run.kept_open() as stage:
        prepared, ground = prepared_run(stage)
        components = {name: look_at(stage, name) for name in config.text_encoders}
    with run.kept_open() as stage:
        unet = components["unet"] = look_at(stage, "unet")
        paths = run_paths(stage, prepared)
    ran = unet.execution.precision if unet.execution is not None else ""
    compared = path_rows(run, paths, ran=ran)
    with run.kept_open() as stage:
        coders = [name for name in config.components if name not in components]
        components |= {name: look_at(stage, name) for name in coders}
        image_rows, pictures = picture_evidence(stage, paths, ran=ran)
    evidence = CandidateReport(
        runtime=candidate.name,
        bundle=candidate.bundle.folder.name,
        format=candidate.bundle.format,
        executions={
            name: found.execution
            for name, found in components.items()
            if found.execution is not None
        },
        self_difference={name: found.self_difference for name, found in components.items()},
        rows=(
            *ground,
            *(row for found in components.values() for row in found.rows),
            *compared,
            *image_rows,
        ),
    )
    return Checked(
        report=with_verdicts(evidence, recording, wanted.limits),
        last_latents=None if paths is None or paths.free.stopped_by else paths.free.latents[-1],
        pictures=pictures,
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
    rows += [not_run_row(candidate, *about, reason) for about in RUN_STAGES]
    return CandidateReport(
        runtime=candidate.name,
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
