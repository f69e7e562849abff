"""What every bisection stands on: a candidate, the checkpoint, and what that gave."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, UsageError
from triptych.parity.bisect import Bisected
from triptych.parity.candidate import Candidate
from triptych.parity.component_trial import MeasuredComponent, measure_component
from triptych.parity.floors import (
    Arithmetic,
    FloorTable,
    arithmetic_of,
    floor_table,
    floors_from_rows,
)
from triptych.parity.gates import Gates, judged
from triptych.parity.golden import is_golden
from triptych.parity.preconditions import bundle_facts, check_preconditions
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import Row, furthest
from triptych.parity.swap import MeasuredRun, Side, SwapRuns
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.pytorch import Pytorch
from triptych.types import ComponentName
from triptych.workflows.check_candidates import find_candidates
from triptych.workflows.record import (
    RunRequest,
    declared_in,
    open_reference,
    pytorch_in,
    record_reference,
    run_settings,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BisectRequest:
    """What to bisect.

    Attributes:
        what: which kind of switch.
        bundle: the candidate; or a folder that holds one bundle for each format.
        reference: the checkpoint it was made from.
        runtime: the candidate's engine; None takes the one that reads the bundle's format.
        runtime_settings: its device, precision, threads.
        component: whose error is looked at, where one network alone is.
        run: what the reference draws.
        reference_settings: PyTorch's device.
        variant: the reference's weight variant.
        command: what was typed, for the record.
    """

    what: Bisected
    bundle: Path
    reference: Path
    runtime: str | None = None
    runtime_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    component: ComponentName = "unet"
    run: RunRequest = field(default_factory=lambda: RunRequest(num_inference_steps=4))
    reference_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    variant: str | None = None
    command: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Both sides, opened, and the reference's run.

    Attributes:
        request: what was asked for.
        candidate: what is bisected.
        checkpoint: the reference.
        recording: what it gave.
        report: told what is done now.
    """

    request: BisectRequest
    candidate: Candidate
    checkpoint: Bundle
    recording: Recording
    report: StageReporter

    @property
    def side(self) -> Side:
        """The candidate."""
        return Side(bundle=self.candidate.bundle, runtime=self.candidate.runtime)

    @property
    def reference_side(self) -> Side:
        """The checkpoint in PyTorch."""
        runtime = Pytorch(settings=self.request.reference_settings)
        return Side(bundle=self.checkpoint, runtime=runtime)


def find_candidate(request: BisectRequest) -> Candidate:
    """The one bundle that is bisected, on its engine.

    Raises:
        UsageError: there are several, or the engine does not read it.
        BundleError: it is incomplete or corrupt.
        BackendError: the engine is not installed, or does not run on this system.
    """
    if is_golden(request.reference):
        raise UsageError(
            f"reference: got the golden {request.reference}, want the checkpoint that it was "
            "recorded from: its networks are run, and exported again."
        )
    names = () if request.runtime is None else (request.runtime,)
    found = find_candidates(request.bundle, names, request.runtime_settings)
    if len(found) > 1:
        raise UsageError(
            f"{request.bundle}: got bundles in {', '.join(one.bundle.format for one in found)} "
            "format, want one of them. Give its folder, or --runtime."
        )
    (candidate,) = found
    probe = candidate.runtime.probe()
    if not probe.installed:
        raise BackendError(probe.remedy)
    return candidate


def make_ground(request: BisectRequest, candidate: Candidate, *, report: StageReporter) -> Ground:
    """Record the reference on the run that both are compared by.

    Raises:
        IncomparableError: the two are not the same model.
        CheckpointError: the checkpoint is not whole, or not SDXL.
        NonFiniteError: the reference itself gives NaN or infinity.
    """
    checkpoint = open_reference(request.reference, variant=request.variant, preview_decoder=None)
    check_preconditions(
        bundle_facts(candidate.bundle),
        bundle_facts(checkpoint),
        candidate=str(request.bundle),
        reference=str(request.reference),
    )
    settings = run_settings(checkpoint, request.run, size_px=candidate.bundle.built_size_px)
    recording = record_reference(
        checkpoint, settings, request.reference_settings, pictures=False, report=report
    )
    return Ground(
        request=request,
        candidate=candidate,
        checkpoint=checkpoint,
        recording=recording,
        report=report,
    )


def worst_component_row(ground: Ground, measured: MeasuredComponent) -> Row:
    """The candidate's comparison that is furthest from passing, held to what its class costs."""
    component = ground.request.component
    floors = FloorTable()
    arithmetic = _arithmetic(measured.rows)
    if arithmetic is not None:
        ground.report(f"what {arithmetic} costs")
        settings = ground.request.reference_settings
        costs = measure_component(
            ground.recording,
            Side(bundle=ground.checkpoint, runtime=pytorch_in(arithmetic, settings)),
            component,
            precision=declared_in(arithmetic),
            name=arithmetic,
        )
        floors = floor_table(floors_from_rows(costs.rows, arithmetic))
    return _worst(ground, measured.rows, floors, {component: measured.self_difference})


def worst_run_row(ground: Ground, measured: MeasuredRun, *, self_difference: float) -> Row:
    """As `worst_component_row`, of the last latents and the picture."""
    floors = FloorTable()
    arithmetic = _arithmetic(measured.rows)
    if arithmetic is not None:
        ground.report(f"what {arithmetic} costs")
        settings = ground.request.reference_settings
        costs = Side(bundle=ground.checkpoint, runtime=pytorch_in(arithmetic, settings))
        runs = SwapRuns(ground.recording, ground.candidate, {arithmetic: costs})
        found = runs.run(runs.all_of(arithmetic), name=arithmetic)
        floors = floor_table(floors_from_rows(found.rows, arithmetic))
    differences: dict[ComponentName, float] = dict.fromkeys(
        ("unet", "vae_decoder"), self_difference
    )
    return _worst(ground, measured.rows, floors, differences)


def _arithmetic(rows: Iterable[Row]) -> Arithmetic | None:
    return next((arithmetic_of(row.precision, row.ran) for row in rows if row.has_numbers), None)


def _worst(
    ground: Ground,
    rows: Sequence[Row],
    floors: FloorTable,
    self_difference: Mapping[ComponentName, float],
) -> Row:
    gates = Gates(
        runtime=ground.candidate.runtime.name,
        guidance_scale=ground.recording.settings.guidance_scale,
        floors=floors,
        self_difference=self_difference,
    )
    return furthest([judged(row, gates) for row in rows])
