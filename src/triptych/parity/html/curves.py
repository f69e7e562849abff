"""Which rows of a candidate make the lines of its charts: error over steps, a line a stage."""

import math
from collections.abc import Mapping, Sequence
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
        case: what was run; empty where the rows give it no name.
        curves: a line for each stage that was looked at.
        stops: what ended the run before its end, by its step.
    """

    case: str
    curves: tuple[Curve, ...]
    stops: tuple[tuple[int, Row], ...] = ()


def run_curves(rows: Sequence[Row]) -> tuple[RunCurves, ...]:
    """The curves of all runs, in the order in which the rows name them."""
    stepped = [(row.step, row) for row in rows if row.step is not None]
    drawn = [(step, row) for step, row in stepped if row.stage in CURVE_STAGES]
    stops = tuple(
        (step, row)
        for step, row in stepped
        if row.stage == "finiteness" and row.verdict == "failed"
    )
    names = list(dict.fromkeys(row.case for _, row in drawn))
    if not _are_runs(drawn):
        if not drawn and not stops:
            return ()
        name = names[0] if len(names) == 1 else ""
        return (RunCurves(case=name, curves=_curves(drawn), stops=stops),)
    return tuple(
        RunCurves(
            case=name,
            curves=_curves([(step, row) for step, row in drawn if row.case == name]),
            stops=tuple(
                stop for stop in stops if stop[1].case == name or stop[1].case not in names
            ),
        )
        for name in names
    )


def _are_runs(drawn: Sequence[tuple[int, Row]]) -> bool:
    """Whether cases name several runs: one stage has one step in two of them.

    Otherwise they name the steps of one.
    """
    cases: dict[tuple[Stage, int], set[str]] = {}
    for step, row in drawn:
        cases.setdefault((row.stage, step), set()).add(row.case)
    return any(len(found) > 1 for found in cases.values())


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
