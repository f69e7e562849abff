"""Runs in which each network is one side's or the other's, and how far they end from the reference.

A run of all components is bisected by what it leaves behind: the last latents and the picture.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, NonFiniteError
from triptych.parity.bisect import Share, Trial, make_share, ranked
from triptych.parity.candidate import Candidate
from triptych.parity.compare import compare
from triptych.parity.components import not_run_row
from triptych.parity.image import image_row
from triptych.parity.metrics import rel_l2
from triptych.parity.preconditions import check_preconditions, find_preconditions
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import Row, with_comparison
from triptych.parity.trajectory import Path, free_path
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.mixed import Mixed
from triptych.sampling.pipeline import decode, prepare
from triptych.types import ComponentName, ImageFloats

RECORDED = "reference"
"""The side whose own run need not be made again: it is in the recording."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Where components are taken from.

    Attributes:
        bundle: their artifacts.
        runtime: the engine that opens them.
    """

    bundle: Bundle
    runtime: Runtime


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One run and how far it ended from the reference.

    Attributes:
        trial: what was measured.
        rows: its last latents and its picture, not judged yet.
        image: its picture; None where it did not come to its end.
    """

    trial: Trial
    rows: tuple[Row, ...]
    image: ImageFloats | None = None


@final
class SwapRuns:
    """Makes runs of one recording's settings; none twice, but for a twin.

    Networks before the VAE decoder decide the latents: runs that differ in the decoder alone share
    them.
    """

    def __init__(
        self, recording: Recording, candidate: Candidate, sides: Mapping[str, Side]
    ) -> None:
        self._recording = recording
        self._candidate = candidate
        self._sides = sides
        self._known: dict[tuple[str, ...], tuple[Path, Execution | None]] = {}

    @property
    def components(self) -> tuple[ComponentName, ...]:
        """What takes part in a run."""
        return self._candidate.run_components

    def all_of(self, side: str) -> dict[ComponentName, str]:
        """Every component from one side."""
        return dict.fromkeys(self.components, side)

    def run(self, chosen: Mapping[ComponentName, str], *, name: str) -> MeasuredRun:
        """One run.

        Args:
            chosen: the side of every component.
            name: of the trial.

        Raises:
            IncomparableError: it would not be the recorded run.
            BundleError: a side lacks a component, or its engine cannot read it.
            BackendError: an engine is missing.
        """
        before = tuple(side for component, side in chosen.items() if component != "vae_decoder")
        if set(before) == {RECORDED}:
            recording = self._recording
            path = Path(latents=recording.latents, noise_preds=recording.noise_preds)
            return self._decoded(path, recording.execution, chosen, name)
        if before not in self._known:
            self._known[before] = self._path(self._mixed(chosen))
        return self._decoded(*self._known[before], chosen, name)

    def self_difference(self, first: MeasuredRun, chosen: Mapping[ComponentName, str]) -> float:
        """Relative L2 between a run's picture and that of a second run of the same."""
        path, execution = self._path(self._mixed(chosen))
        second = self._decoded(path, execution, chosen, first.trial.name)
        if first.image is None or second.image is None:
            return 0.0
        return rel_l2(second.image, first.image)

    def _mixed(self, chosen: Mapping[ComponentName, str]) -> Candidate:
        artifacts = {
            component: self._sides[side].bundle.artifact(component)
            for component, side in chosen.items()
        }
        engines = {component: self._sides[side].runtime for component, side in chosen.items()}
        return replace(
            self._candidate,
            bundle=replace(self._candidate.bundle, artifacts=artifacts),
            runtime=Mixed(engines=engines),
        )

    def _path(self, mixed: Candidate) -> tuple[Path, Execution | None]:
        recording, executions = self._recording, list[Execution]()
        try:
            prepared = prepare(
                mixed.bundle,
                mixed.runtime,
                recording.candidate_settings,
                make_sampler=mixed.make_sampler,
            )
        except NonFiniteError as error:  # a text encoder's
            return Path(latents=(), noise_preds=(), stopped_by=str(error)), None
        check_preconditions(
            find_preconditions(mixed.bundle, prepared),
            recording.preconditions,
            candidate=str(mixed.bundle.folder),
            reference="the reference",
        )
        path = free_path(mixed, prepared, on_open=executions.append)
        return path, executions[0] if executions else None

    def _decoded(
        self,
        path: Path,
        execution: Execution | None,
        chosen: Mapping[ComponentName, str],
        name: str,
    ) -> MeasuredRun:
        ran = "" if execution is None else execution.precision
        if path.stopped_by:
            return self._stopped(name, ran, path.stopped_by)
        mixed = self._mixed(chosen)
        try:
            images = decode(mixed.bundle, mixed.runtime, {"last": path.latents[-1]})
        except (NonFiniteError, BackendError) as error:
            return self._stopped(name, ran, str(error))
        image, recording = images["last"], self._recording
        distances = {
            "latents": rel_l2(path.latents[-1], recording.latents[-1]),
            "image": rel_l2(image, recording.image),
        }
        return MeasuredRun(
            trial=Trial(name=name, error=distances["image"], distances=distances, ran=ran),
            rows=tuple(self._rows(path, image, ran)),
            image=image,
        )

    def _rows(self, path: Path, image: ImageFloats, ran: str) -> Iterable[Row]:
        candidate, recording = self._candidate, self._recording
        step = len(path.latents) - 1
        about = replace(
            not_run_row(candidate, "free_running", "unet", ""),
            case="the end of the run",
            step=step,
            precision=candidate.run_precision,
            ran=ran,
        )
        last = compare(path.latents[-1], recording.latents[-1], component="unet", tensor="latents")
        yield with_comparison(about, last)
        yield image_row(
            replace(about, stage="image", component="vae_decoder"), image, recording.image
        )

    def _stopped(self, name: str, ran: str, reason: str) -> MeasuredRun:
        row = not_run_row(self._candidate, "finiteness", "unet", reason)
        return MeasuredRun(
            trial=Trial(name=name, error=float("inf"), ran=ran, stopped_by=reason),
            rows=(replace(row, case="the run", verdict="failed"),),
        )


def component_shares(
    runs: SwapRuns,
    *,
    exact: str,
    changed: str,
    whole: Trial,
    self_difference: float,
    exact_error: float = 0.0,
    report: StageReporter,
) -> tuple[tuple[Trial, ...], tuple[Share, ...]]:
    """Swap one component at a time, both ways: two runs for each.

    Args:
        runs: makes them.
        exact: the side that is right.
        changed: the side whose error is to be explained.
        whole: all components from that side.
        self_difference: between two such runs.
        exact_error: of all components from the side that is right.
        report: told what is running.

    Returns:
        Every trial, and what each component carries of the picture's error, the most first.
    """
    trials, shares = list[Trial](), list[Share]()
    for component in runs.components:
        report(f"{component} alone")
        alone = runs.run(
            {**runs.all_of(exact), component: changed}, name=f"{exact} but for {component}"
        ).trial
        report(f"all but {component}")
        without = runs.run(
            {**runs.all_of(changed), component: exact}, name=f"{changed} but for {component}"
        ).trial
        trials += [alone, without]
        shares.append(
            make_share(
                component,
                alone=alone.error,
                without=without.error,
                whole=whole.error,
                self_difference=self_difference,
                exact=exact_error,
            )
        )
    return tuple(trials), ranked(shares)
