"""One component under some switches, on every recorded feed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from triptych.errors import BackendError, BundleError, IncomparableError, NonFiniteError
from triptych.parity.bisect import Trial, worst
from triptych.parity.components import output_rows, takes
from triptych.parity.metrics import rel_l2
from triptych.parity.recording import RecordedCase, Recording
from triptych.parity.report import Row
from triptych.parity.swap import Side
from triptych.runtimes.base import Execution
from triptych.runtimes.checked import open_session
from triptych.types import Array, ComponentName, Precision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredComponent:
    """What one component gave.

    Attributes:
        trial: how far it is from the reference.
        rows: one for each output of each case, not judged yet.
        errors: of each of these, what it gave minus what the reference gave, over the norm of the
            latter.
        self_difference: relative L2 between two runs of one feed.
    """

    trial: Trial
    rows: tuple[Row, ...] = ()
    errors: Mapping[str, Array] = field(default_factory=dict)
    self_difference: float = 0.0


def measure_component(
    recording: Recording,
    side: Side,
    component: ComponentName,
    *,
    precision: Precision,
    name: str,
) -> MeasuredComponent:
    """Run a component on every recorded feed that it takes; on the first of them twice.

    Args:
        recording: the reference.
        side: the component and its engine.
        component: which.
        precision: the class that its rows are judged in.
        name: of the trial.

    Raises:
        BundleError: it is not there, or cannot be read.
        BackendError: the engine or the device is missing, or cannot open it.
        IncomparableError: the reference has no feed for it.
    """
    artifact = side.bundle.artifact(component)
    cases = [
        case for case in recording.cases if case.component == component and takes(artifact, case)
    ]
    if not cases:
        raise IncomparableError(
            candidate=str(artifact.path),
            reference="the reference",
            differences=(f"{component}'s sizes: it takes none of the recorded feeds",),
        )
    with open_session(side.runtime, side.bundle, component) as session:
        execution = session.execution
        about = Row(
            stage="component",
            component=component,
            case="",
            precision=precision,
            ran=execution.precision,
        )
        rows, errors, twin = list[Row](), dict[str, Array](), 0.0
        running = ""
        try:
            for case in cases:
                running = case.name
                outputs = session.run(case.feed)
                if not rows:
                    again = session.run(case.feed)
                    twin = max(rel_l2(again[tensor], outputs[tensor]) for tensor in outputs)
                rows += output_rows(case, outputs, replace(about, case=case.name))
                errors |= _errors(case, outputs)
        except (NonFiniteError, BackendError) as error:
            return _stopped(name, about, execution, f"{running}: {error}")
    distances = {_place(row): row.rel_l2 for row in rows if row.rel_l2 is not None}
    trial = Trial(
        name=name,
        error=worst(distances.values()),
        distances=distances,
        ran=execution.precision,
        switches=execution.details,
    )
    return MeasuredComponent(trial=trial, rows=tuple(rows), errors=errors, self_difference=twin)


def try_component(
    recording: Recording,
    side: Side,
    component: ComponentName,
    *,
    precision: Precision,
    name: str,
) -> MeasuredComponent:
    """As `measure_component`, of switches that an engine may refuse: then the trial says so."""
    try:
        return measure_component(recording, side, component, precision=precision, name=name)
    except (BundleError, BackendError) as error:
        return stopped_component(name, str(error))


def stopped_component(name: str, reason: str) -> MeasuredComponent:
    """A trial that could not be made."""
    return MeasuredComponent(trial=Trial(name=name, error=math.inf, stopped_by=reason))


def _stopped(name: str, about: Row, execution: Execution, reason: str) -> MeasuredComponent:
    stopped = stopped_component(name, reason)
    row = replace(about, stage="finiteness", case="every feed", verdict="failed", reason=reason)
    trial = replace(stopped.trial, ran=execution.precision, switches=execution.details)
    return replace(stopped, trial=trial, rows=(row,))


def _errors(case: RecordedCase, outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        f"{case.name} {tensor}": (outputs[tensor].astype(np.float64) - expected) / _norm(expected)
        for tensor, expected in case.outputs.items()
    }


def _norm(tensor: Array) -> float:
    """The tensor's length; 1 for zeros, which nothing can be counted in."""
    return float(np.linalg.norm(tensor.astype(np.float64))) or 1.0


def _place(row: Row) -> str:
    return " ".join(part for part in (row.case, row.tensor, row.branch) if part)
