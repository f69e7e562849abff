"""Which rows of a candidate make the lines of its charts: error over steps, a line a stage."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from triptych.parity.report import Branch, Row, Stage

CURVE_STAGES: tuple[Stage, ...] = ("teacher_forced", "free_running", "self_state")
"""The stages that follow a run: L, F and S."""

_BRANCHES: tuple[Branch | None, ...] = ("guided", None, "conditional", "unconditional")
"""The one to draw, where a step has several: the guided prediction is what moves the latents."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One stage's error over the steps.

    Attributes:
        stage: which.
        rows: one for each step, in their order.
    """

    stage: Stage
    rows: Mapping[int, Row]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunCurves:
    """The lines of one run, which share a chart.

    Attributes:
        case: what was run; empty where the rows tell of one run alone.
        curves: a line for each stage that was looked at.
    """

    case: str
    curves: tuple[Curve, ...]


def run_curves(rows: Iterable[Row]) -> tuple[RunCurves, ...]:
    """The curves of all runs, in the order in which the rows name them."""
    stepped = [
        (row.step, row) for row in rows if row.stage in CURVE_STAGES and row.step is not None
    ]
    has_runs = _cases_are_runs(stepped)
    by_run: dict[str, list[tuple[int, Row]]] = {}
    for step, row in stepped:
        by_run.setdefault(row.case if has_runs else "", []).append((step, row))
    return tuple(RunCurves(case=case, curves=_curves(found)) for case, found in by_run.items())


def _cases_are_runs(stepped: Sequence[tuple[int, Row]]) -> bool:
    """Whether a case goes on over several steps; otherwise each step is a case of one run."""
    steps: dict[tuple[Stage, str], set[int]] = {}
    for step, row in stepped:
        steps.setdefault((row.stage, row.case), set()).add(step)
    return any(len(found) > 1 for found in steps.values())


def _curves(stepped: Sequence[tuple[int, Row]]) -> tuple[Curve, ...]:
    found = []
    for stage in CURVE_STAGES:
        drawn: dict[int, Row] = {}
        for step, row in stepped:
            if row.stage != stage:
                continue
            if step not in drawn or _drawn_first(row) < _drawn_first(drawn[step]):
                drawn[step] = row
        if drawn:
            found.append(Curve(stage=stage, rows={step: drawn[step] for step in sorted(drawn)}))
    return tuple(found)


def _drawn_first(row: Row) -> tuple[int, float]:
    """The branch, then the larger error; what is not finite is the largest."""
    error = math.inf if row.rel_l2 is None or not math.isfinite(row.rel_l2) else row.rel_l2
    return _BRANCHES.index(row.branch), -error
