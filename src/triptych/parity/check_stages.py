"""What a check does, stage by stage, with a candidate's networks.

In `kept_open` a network is opened once, whoever looks at it. A stage has the text encoders, the
U-Net or the VAE, and closes them at its end: the largest of them bounds the memory, not the sum.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias, final

from triptych.errors import BackendError, IncomparableError, NonFiniteError
from triptych.parity.candidate import Candidate
from triptych.parity.check_options import CheckOptions
from triptych.parity.components import ComponentEvidence, component_evidence, not_run_row
from triptych.parity.image import picture_rows
from triptych.parity.preconditions import Fact, check_preconditions, find_preconditions
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import Row, Stage
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
from triptych.runtimes.kept_open import kept_open
from triptych.sampling.pipeline import Prepared, prepare
from triptych.types import ComponentName, ImagePixels

RUN_STAGES: tuple[tuple[Stage, ComponentName], ...] = (
    ("teacher_forced", "unet"),
    ("free_running", "unet"),
    ("image", "vae_decoder"),
)
"""What a run of the candidate is compared in."""

Pictures: TypeAlias = Mapping[int, ImagePixels]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRun:
    """What every stage is given."""

    recording: Recording
    candidate: Candidate
    options: CheckOptions
    report: StageReporter

    @contextmanager
    def kept_open(self) -> Iterator["CheckRun"]:
        """The same, on an engine that opens each network once and closes all at the end."""
        with kept_open(self.candidate.runtime) as runtime:
            yield replace(self, candidate=replace(self.candidate, runtime=runtime))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaths:
    """What a candidate's U-Net went through.

    Attributes:
        prepared: the run.
        forced: on the reference's latents.
        free: on its own.
    """

    prepared: Prepared
    forced: Path
    free: Path


def check_ground(run: CheckRun, facts: Mapping[str, Fact]) -> None:
    """Refuse a candidate that differs from the reference in what both start from."""
    expected = run.recording.preconditions
    kinds = {name.partition(".")[0] for name in facts}
    check_preconditions(
        facts,
        {name: fact for name, fact in expected.items() if name.partition(".")[0] in kinds},
        candidate=str(run.candidate.bundle.folder),
        reference=run.options.reference_name,
    )


def check_size(run: CheckRun) -> None:
    """Refuse a graph of fixed shapes that makes pictures of another size."""
    built, recorded = run.candidate.bundle.built_size_px, run.recording.image.shape[2:]
    if built is not None and built != recorded:
        made, wanted = (f"{height} x {width}" for height, width in (built, recorded))
        raise IncomparableError(
            candidate=str(run.candidate.bundle.folder),
            reference=run.options.reference_name,
            differences=(f"the pictures' size, {made} px and {wanted} px (height x width)",),
        )


def look_at(run: CheckRun, component: ComponentName) -> ComponentEvidence:
    """One network alone."""
    run.report(f"{run.candidate.name}: {component}")
    return component_evidence(run.recording, run.candidate, component)


def prepared_run(run: CheckRun) -> tuple[Prepared | None, tuple[Row, ...]]:
    """The candidate's run before its first step, once it is seen to be the reference's.

    Text encoders that cannot run leave nothing to compare; the components' rows say so.
    """
    candidate, recording = run.candidate, run.recording
    run.report(f"{candidate.name}: preconditions")
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
    check_ground(run, facts)
    row = not_run_row(candidate, "precondition", "unet", "")
    return prepared, (replace(row, case=f"{len(facts)} facts, exactly equal", verdict="passed"),)


def run_paths(run: CheckRun, prepared: Prepared | None) -> RunPaths | None:
    """Both runs of the U-Net; None where nothing could be prepared."""
    if prepared is None:
        return None
    candidate = run.candidate
    run.report(f"{candidate.name}: teacher-forced steps")
    forced = teacher_forced_path(run.recording, candidate, prepared)
    run.report(f"{candidate.name}: its own run")
    return RunPaths(prepared=prepared, forced=forced, free=free_path(candidate, prepared))


def path_rows(run: CheckRun, paths: RunPaths | None, *, ran: str) -> tuple[Row, ...]:
    """L, F and, on request, S."""
    candidate, recording = run.candidate, run.recording
    if paths is None:
        reason = "a text encoder failed" if candidate.is_whole else "the bundle is not whole"
        return tuple(not_run_row(candidate, *about, reason) for about in RUN_STAGES)
    prepared, forced, free = paths.prepared, paths.forced, paths.free
    return (
        *stopped_rows(candidate, forced, run="teacher-forced"),
        *stopped_rows(candidate, free, run="the candidate's own run"),
        *teacher_forced_rows(recording, candidate, prepared, forced, ran=ran),
        *free_running_rows(recording, candidate, prepared, free, additive=forced.latents, ran=ran),
        *_self_state_rows(run, paths, ran=ran),
    )


def picture_evidence(
    run: CheckRun, paths: RunPaths | None, *, ran: str
) -> tuple[tuple[Row, ...], Pictures]:
    """The picture of the candidate's own run, and those on its way."""
    if paths is None:
        return (), {}
    candidate, free = run.candidate, paths.free
    if free.stopped_by:
        reason = f"the run stopped at step {len(free.noise_preds) + 1}"
        return (not_run_row(candidate, "image", "vae_decoder", reason),), {}
    run.report(f"{candidate.name}: pictures")
    return picture_rows(
        run.recording,
        candidate,
        free,
        every_picture=run.options.pictures,
        metrics=run.options.image_metrics,
        ran=ran,
    )


def _self_state_rows(run: CheckRun, paths: RunPaths, *, ran: str) -> Iterator[Row]:
    options, prepared, free = run.options, paths.prepared, paths.free
    if options.reference is None or options.reference_runtime is None:
        return
    run.report("reference: on the candidate's latents")
    predictions = self_state_predictions(
        run.recording,
        free,
        prepared,
        reference=options.reference,
        runtime=options.reference_runtime,
    )
    yield from self_state_rows(run.candidate, prepared, free, predictions, ran=ran)
