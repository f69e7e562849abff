"""The candidate's side of a check: every component, then the trajectory twice, then the picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, NonFiniteError
from triptych.parity.compare import compare, passes
from triptych.parity.limits import COMPONENT_REL_L2, TRAJECTORY_REL_L2, coarsest, guided_limit
from triptych.parity.recording import Recording, StageReporter
from triptych.parity.report import ParityReport, Row, Stage
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.guidance import predict_noise
from triptych.sampling.inpaint import unet_sample
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.schedulers import SamplerMaker, read_sampler
from triptych.types import Array, ComponentName, Precision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is checked.

    Attributes:
        bundle: its artifacts.
        runtime: the engine that runs them.
        precisions: the arithmetic each component declares, which sets its limit.
        make_sampler: makes the schedule and the solver, for schedulers that are not triptych's.
    """

    bundle: Bundle
    runtime: Runtime
    precisions: Mapping[ComponentName, Precision]
    make_sampler: SamplerMaker = read_sampler

    @property
    def is_whole(self) -> bool:
        """Whether it has every component that the run of a check needs."""
        config = self.bundle.config
        unused = {"preview_decoder"} if config.is_inpainting else {"preview_decoder", "vae_encoder"}
        return set(config.components) - unused <= set(self.bundle.artifacts)


def check(
    recording: Recording,
    candidate: Candidate,
    *,
    problems: Mapping[ComponentName, tuple[str, ...]] | None = None,
    report: StageReporter,
) -> ParityReport:
    """Compare a candidate with a recording.

    A component that gives NaN or infinity, or that its engine cannot run at some size, fails that
    row, and the check goes on.

    Args:
        recording: the reference.
        candidate: what is checked.
        problems: why other clients could not run a component, where that was looked into.
        report: told the stages.

    Raises:
        BundleError: an artifact cannot be read.
        BackendError: the engine is missing.
    """
    executions: dict[ComponentName, Execution] = {}
    rows: list[Row] = []
    for component in candidate.bundle.config.components:
        report(f"candidate: {component}")
        if problems is not None and component in problems:
            rows.extend(_contract_rows(component, candidate, problems[component]))
        rows.extend(_component_rows(recording, candidate, component, executions))
    report("candidate: trajectory")
    rows.extend(_trajectory_rows(recording, candidate))
    settings = recording.prepared.settings
    return ParityReport(
        reference=recording.execution,
        candidates=executions,
        settings={
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "height_px": recording.prepared.height_px,
            "width_px": recording.prepared.width_px,
            "seeds": list(settings.seeds),
        },
        rows=tuple(rows),
    )


def unavailable_report(
    candidate: Candidate, *, reason: str, problems: Mapping[ComponentName, tuple[str, ...]]
) -> ParityReport:
    """The report where the engine cannot run here: nothing but the files was looked at.

    Args:
        candidate: what should have been checked.
        reason: why its engine cannot run.
        problems: as for `check`.
    """
    rows: list[Row] = []
    for component in candidate.bundle.artifacts:
        if component in problems:
            rows.extend(_contract_rows(component, candidate, problems[component]))
        rows.append(_not_run("component", component, candidate, reason))
    rows.extend(_trajectory_not_run(candidate, reason))
    return ParityReport(
        reference=None, candidates={}, settings={}, rows=tuple(rows), unavailable=reason
    )


def _contract_rows(
    component: ComponentName, candidate: Candidate, problems: tuple[str, ...]
) -> Iterator[Row]:
    """Whether the format's own clients could run a component; one row for each obstacle."""
    precision = candidate.precisions[component]
    for problem in problems or ("",):
        yield Row(
            stage="contract",
            component=component,
            case=problem or "names, dtypes, shapes",
            precision=precision,
            limit=COMPONENT_REL_L2[precision],
            comparison=None,
            verdict="failed" if problem else "passed",
            reason=problem,
        )


def _component_rows(
    recording: Recording,
    candidate: Candidate,
    component: ComponentName,
    executions: dict[ComponentName, Execution],
) -> Iterator[Row]:
    if component not in candidate.bundle.artifacts:
        yield _not_run("component", component, candidate, "the bundle does not have it")
        return
    cases = [case for case in recording.cases if case.component == component]
    if not cases:
        yield _not_run("component", component, candidate, "the reference does not have it")
        return
    precision = candidate.precisions[component]
    judge = _Judge(
        stage="component",
        component=component,
        precision=precision,
        limit=COMPONENT_REL_L2[precision],
    )
    with open_session(candidate.runtime, candidate.bundle, component) as session:
        executions[component] = session.execution
        yield from _precision_rows(judge, session.execution)
        for case in cases:
            try:
                outputs = session.run(case.feed)
            except (NonFiniteError, BackendError) as error:
                yield judge.failed(case.name, str(error))
                continue
            for tensor, expected in case.outputs.items():
                yield judge.compared(outputs[tensor], expected, tensor=tensor, case=case.name)


def _precision_rows(judge: "_Judge", execution: Execution) -> Iterator[Row]:
    """Whether the engine computed in what it was to; nothing where it does not say."""
    declared, ran = execution.declared_precision, execution.precision
    if declared is None:
        return
    case = f"declared {declared}, ran {ran}"
    yield Row(
        stage="precision",
        component=judge.component,
        case=case,
        precision=judge.precision,
        limit=judge.limit,
        comparison=None,
        verdict="passed" if ran == declared else "failed",
        reason="" if ran == declared else case,
    )


def _trajectory_rows(recording: Recording, candidate: Candidate) -> Iterator[Row]:
    if not candidate.is_whole:
        yield from _trajectory_not_run(candidate, "the bundle is not whole")
        return
    try:
        yield from _teacher_forced_rows(recording, candidate)
        yield from _free_running_rows(recording, candidate)
    except NonFiniteError as error:
        precision = coarsest(candidate.precisions.values())
        limit = TRAJECTORY_REL_L2[precision]
        judge = _Judge(stage="free_running", component="unet", precision=precision, limit=limit)
        yield judge.failed("the whole run", str(error))


def _trajectory_not_run(candidate: Candidate, reason: str) -> Iterator[Row]:
    yield _not_run("teacher_forced", "unet", candidate, reason)
    yield _not_run("free_running", "unet", candidate, reason)
    yield _not_run("image", "vae_decoder", candidate, reason)


def _teacher_forced_rows(recording: Recording, candidate: Candidate) -> Iterator[Row]:
    """The U-Net on the reference's own latents: its error alone, nothing inherited."""
    prepared = recording.prepared
    settings, schedule = prepared.settings, prepared.schedule
    precision = candidate.precisions["unet"]
    judge = _Judge(
        stage="teacher_forced",
        component="unet",
        precision=precision,
        limit=guided_limit(precision, settings.guidance_scale),
    )
    with open_session(candidate.runtime, candidate.bundle, "unet") as unet:
        for index, expected in enumerate(recording.noise_preds):
            position = prepared.part.first + index
            actual = predict_noise(
                unet,
                unet_sample(recording.latents[index], schedule, position, prepared.start.inpaint),
                timestep=float(schedule.timesteps[position]),
                conditioning=prepared.conditioning,
                guidance_scale=settings.guidance_scale,
                mode=settings.guidance_mode,
            )
            case = f"t={schedule.timesteps[position]:g}"
            yield judge.compared(actual, expected, tensor="noise_pred", case=case, step=index + 1)


def _free_running_rows(recording: Recording, candidate: Candidate) -> Iterator[Row]:
    """The candidate's own run from the same noise, and its picture."""
    precision = coarsest(candidate.precisions.values())
    limit = TRAJECTORY_REL_L2[precision]
    judge = _Judge(stage="free_running", component="unet", precision=precision, limit=limit)
    prepared = prepare(
        candidate.bundle,
        candidate.runtime,
        recording.prepared.settings,
        make_sampler=candidate.make_sampler,
    )
    latents = recording.prepared.start.latents
    for event in denoise(candidate.bundle, candidate.runtime, prepared):
        latents = event.latents.copy()
        expected = recording.latents[event.index + 1]
        case = f"t={event.timestep:g}"
        yield judge.compared(latents, expected, tensor="latents", case=case, step=event.index + 1)
    image = decode(candidate.bundle, candidate.runtime, {"final": latents})["final"]
    picture = _Judge(stage="image", component="vae_decoder", precision=precision, limit=limit)
    yield picture.compared(image, recording.image, tensor="image", case="the run's picture")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Turns comparisons of one kind into rows."""

    stage: Stage
    component: ComponentName
    precision: Precision
    limit: float

    def compared(
        self, actual: Array, expected: Array, *, tensor: str, case: str, step: int | None = None
    ) -> Row:
        found = compare(actual, expected, component=self.component, tensor=tensor)
        ok = passes(found, rel_l2_limit=self.limit)
        reason = "" if ok else f"relative L2 {found.rel_l2:.1e} is over {self.limit:.1e}"
        if not (found.finite_actual and found.finite_expected):
            reason = "got NaN or infinity"
        return Row(
            stage=self.stage,
            component=self.component,
            case=case,
            step=step,
            precision=self.precision,
            limit=self.limit,
            comparison=found,
            verdict="passed" if ok else "failed",
            reason=reason,
        )

    def failed(self, case: str, reason: str) -> Row:
        return Row(
            stage=self.stage,
            component=self.component,
            case=case,
            precision=self.precision,
            limit=self.limit,
            comparison=None,
            verdict="failed",
            reason=reason,
        )


def _not_run(stage: Stage, component: ComponentName, candidate: Candidate, reason: str) -> Row:
    precision = candidate.precisions.get(component, "fp32")
    return Row(
        stage=stage,
        component=component,
        case="",
        precision=precision,
        limit=COMPONENT_REL_L2[precision],
        comparison=None,
        verdict="not_run",
        reason=reason,
    )
