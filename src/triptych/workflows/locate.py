"""Find the operator of a bundle's component at which its error begins.

Two passes, so that memory stays bounded. The first runs the reference and the candidate once each,
the candidate in as many runs as there are batches of taps, and keeps a sketch of every tensor. The
second keeps the tensors around the few suspects whole, and runs the suspects alone.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.errors import BrokenInputError, NonFiniteError, UsageError
from triptych.models.feeds import TIMESTEPS, Case, component_cases
from triptych.models.prompts import prompt_ids
from triptych.parity.compare import Comparison, compare
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.locate import (
    LocateReport,
    changed_by,
    most_suspicious,
    operator_limit,
    ranked,
    suspects,
)
from triptych.parity.recording import StageReporter
from triptych.parity.sites import make_sites
from triptych.runtimes import runtimes_for
from triptych.runtimes._taps.base import Tap
from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.opening import TAPPED_RUNTIMES, open_tapper
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.pytorch import ReferenceModule
from triptych.runtimes._taps.sketch import Sketch, estimated_rel_l2, sketch
from triptych.runtimes._taps.trace import Trace
from triptych.runtimes._taps.watched import WatchedSession
from triptych.runtimes.base import Execution, Runtime, RuntimeSettings
from triptych.runtimes.checked import CheckedSession
from triptych.types import ComponentName, TensorMap
from triptych.workflows.check_candidates import declared_precisions
from triptych.workflows.locate_suspects import FirstPass, Sides, batches, examine
from triptych.workflows.record import open_reference
from triptych.workflows.runtime_choice import choose_runtime

MAX_SUSPECTS = 16
"""How many suspects are run alone, those that multiply the error most."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LocateRequest:
    """Where to look, and for what difference.

    Attributes:
        bundle: the candidate.
        reference: the checkpoint it was made from.
        component: the network to look into.
        runtime: the candidate's engine; None takes one that reads its format and can be tapped.
        runtime_settings: the candidate's device, precision, threads.
        reference_device: where PyTorch runs the reference.
        timestep: of the U-Net's feed; None takes the first of the training schedule.
        taps_per_run: how many values are looked at in one run of the candidate.
        variant: the reference's weight variant.
        preview_decoder: the folder of the reference's preview decoder, where that is elsewhere.
    """

    bundle: Path
    reference: Path
    component: ComponentName = "unet"
    runtime: str | None = None
    runtime_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    reference_device: str = "cpu"
    timestep: float | None = None
    taps_per_run: int = 20
    variant: str | None = None
    preview_decoder: Path | None = None


def locate(request: LocateRequest, *, report: StageReporter) -> LocateReport:
    """Look for the first operator whose inputs agree with PyTorch and whose output does not.

    Raises:
        UsageError: the engine shows nothing of its inside, or a timestep was given to a component
            that has none.
        BundleError: the bundle is incomplete or corrupt, or does not have the component.
        BrokenInputError: the two are not of one model, or no name in the graph tells a module.
        BackendError: an engine or a device is missing.
        NonFiniteError: the reference itself gives NaN or infinity.
    """
    if request.timestep is not None and request.component != "unet":
        raise UsageError(f"timestep: got one for {request.component}, want one for unet alone.")
    report("opening")
    bundle = open_bundle(request.bundle)
    bundle.check_files()
    runtime = _choose_runtime(bundle, request)
    sides = _open(bundle, runtime, request)
    precision = declared_precisions(bundle, request.runtime_settings)[sides.component]
    report("running the reference")
    sketches: dict[int, Sketch] = {}
    trace, expected = sides.module.run(
        sides.case.feed, lambda number, array: sketches.update({number: sketch(array)})
    )
    _check_finite(sides.component, expected)
    report("running the candidate")
    plain = _run_without_taps(sides, runtime)
    bounds = _bounds(sides, trace)
    first = FirstPass(
        trace=trace,
        feed=plain.feed,
        tensors={bound.value: bound.tensor for bound in bounds},
        limit=operator_limit(precision),
        taps_per_run=len(bounds) if sides.tapper.shows_all else request.taps_per_run,
    )
    measured = _measure(sides, first, sketches, plain, report)
    sites = make_sites(
        sides.tapper.graph,
        trace,
        [bound for bound in bounds if bound.value in measured.errors],
        prefix=sides.module.prefix,
    )
    suspected = suspects(sites, measured.errors, limit=first.limit)
    chosen = most_suspicious(suspected, measured.errors, count=MAX_SUSPECTS)
    report(f"suspects: {len(chosen)}")
    return LocateReport(
        component=sides.component,
        case=sides.case.name,
        execution=plain.execution,
        precision=precision,
        limit=COMPONENT_REL_L2[precision],
        operator_limit=first.limit,
        num_sites=len(sites),
        num_operators=sides.tapper.graph.num_data_operators,
        outputs=_compared_outputs(sides, plain, expected),
        tapping=measured.tapping,
        findings=ranked(examine(sides, first, chosen)),
        num_unexamined=len(suspected) - len(chosen),
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    """The candidate's run without taps.

    Attributes:
        feed: in the graph's names.
        outputs: in the graph's names.
        execution: what it ran on.
    """

    feed: TensorMap
    outputs: TensorMap
    execution: Execution


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What the runs with taps showed.

    Attributes:
        errors: estimated relative L2 by value; a value that has another shape than the reference's
            tensor was not that tensor, and is left out.
        tapping: the largest relative L2 by which a run's outputs differ from those without taps.
    """

    errors: Mapping[str, float]
    tapping: float


def _choose_runtime(bundle: Bundle, request: LocateRequest) -> Runtime:
    able = [name for name in runtimes_for(bundle.format) if name in TAPPED_RUNTIMES]
    if not able:
        raise UsageError(
            f"{bundle.folder}: got a bundle in {bundle.format} format, want one that an engine "
            f"with taps reads: {', '.join(TAPPED_RUNTIMES)}."
        )
    return choose_runtime(bundle, request.runtime or able[0], request.runtime_settings)


def _open(bundle: Bundle, runtime: Runtime, request: LocateRequest) -> Sides:
    component = request.component
    reference = open_reference(
        request.reference, variant=request.variant, preview_decoder=request.preview_decoder
    )
    artifact, original = bundle.artifact(component), reference.artifact(component)
    if artifact.spec != original.spec:
        raise BrokenInputError(
            f"{bundle.folder}: cannot be compared with {reference.folder}, their configs give "
            f"{component} other inputs or outputs."
        )
    tapper = open_tapper(runtime, artifact)
    module = ReferenceModule(original, device=request.reference_device)
    return Sides(
        artifact=artifact,
        original=original,
        tapper=tapper,
        module=module,
        names=ParameterNames(module.parameters, prefix=module.prefix),
        case=_case(reference, artifact, request.timestep),
    )


def _case(reference: Bundle, artifact: Artifact, timestep: float | None) -> Case:
    """The first of the feeds that a check knows; for text encoders the long prompt."""
    component = artifact.spec.name
    input_ids = prompt_ids(reference.folder, component)[-1:]
    cases = component_cases(
        component,
        reference.config,
        input_ids=input_ids,
        timesteps=TIMESTEPS[:1] if timestep is None else (timestep,),
        fixed_axes=artifact.fixed_axes,
    )
    case = next(cases)
    return replace(case, name="a long prompt") if input_ids.size else case


def _check_finite(component: ComponentName, outputs: TensorMap) -> None:
    for name, output in outputs.items():
        finite = np.isfinite(output)
        if not finite.all():
            raise NonFiniteError(
                component=component,
                tensor=name,
                count=int(output.size - finite.sum()),
                size=output.size,
                hint="It is the reference's own.",
            )


def _run_without_taps(sides: Sides, runtime: Runtime) -> _Plain:
    session = WatchedSession(runtime.open(sides.artifact))
    with CheckedSession(session, sides.artifact) as checked, contextlib.suppress(NonFiniteError):
        checked.run(sides.case.feed)
    # the interpreter stops at the first NaN and gives nothing
    outputs = session.given or sides.tapper.measure(session.feed, []).outputs
    return _Plain(feed=session.feed, outputs=outputs, execution=session.execution)


def _bounds(sides: Sides, trace: Trace) -> tuple[Bound, ...]:
    """The values that are known to be tensors of the reference; the outputs are among them."""
    graph = sides.tapper.graph
    found = {
        bound.value: bound
        for bound in sides.tapper.bind(trace, sides.names)
        if bound.value not in graph.inputs
    }
    if not found:
        raise BrokenInputError(
            f"{sides.artifact.path}: got a graph in which no name tells a module of PyTorch's, "
            "want one that was traced from it. Export it with triptych, optimum or coremltools."
        )
    for value, name in sides.output_names.items():
        bound = Bound(value=value, tensor=trace.outputs[name], call=0, role="input")
        found.setdefault(value, bound)
    return tuple(found.values())


def _measure(
    sides: Sides,
    first: FirstPass,
    sketches: Mapping[int, Sketch],
    plain: _Plain,
    report: StageReporter,
) -> _Measured:
    errors: dict[str, float] = {}
    tapping = 0.0
    done = 0
    for batch in batches(first.tensors, first.taps_per_run):
        report(f"looking at {done + 1} to {done + len(batch)} of {len(first.tensors)} values")
        shapes = {value: first.trace.shapes[first.tensors[value]] for value in batch}
        tapped = sides.tapper.measure(
            first.feed, [Tap(value=value, shape=shape) for value, shape in shapes.items()]
        )
        for value, seen in tapped.sketches.items():
            if seen.shape == shapes[value]:
                errors[value] = estimated_rel_l2(seen, sketches[first.tensors[value]])
        for name, output in plain.outputs.items():
            changed = changed_by(tapped.outputs[name], output)
            tapping = changed if math.isnan(changed) else max(tapping, changed)
        done += len(batch)
    return _Measured(errors=errors, tapping=tapping)


def _compared_outputs(sides: Sides, plain: _Plain, expected: TensorMap) -> tuple[Comparison, ...]:
    return tuple(
        compare(
            plain.outputs[value].astype(np.float32),
            expected[name],
            component=sides.component,
            tensor=name,
        )
        for value, name in sides.output_names.items()
    )
