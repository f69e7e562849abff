"""Which rows are drawn: one a step, of the branch that moves the latents, the worst where many."""

import math
from dataclasses import replace

import pytest

from triptych.parity.html.curves import run_curves
from triptych.parity.report import Branch, Row, Stage


def row(
    step: int | None,
    rel_l2: float | None = 1e-3,
    *,
    stage: Stage = "free_running",
    case: str = "seed 0",
    branch: Branch | None = None,
) -> Row:
    return Row(
        stage=stage,
        component="unet",
        case=case,
        precision="fp32",
        step=step,
        rel_l2=rel_l2,
        branch=branch,
    )


def test_every_run_has_its_curves_by_stage() -> None:
    rows = [
        row(step, stage=stage, case=case)
        for case in ("seed 0", "seed 1")
        for stage in ("self_state", "teacher_forced")
        for step in (2, 1)
    ]
    runs = run_curves([*rows, row(None), row(1, stage="component")])
    assert [run.case for run in runs] == ["seed 0", "seed 1"]
    for run in runs:
        assert [curve.stage for curve in run.curves] == ["teacher_forced", "self_state"]
        assert all(list(curve.rows) == [1, 2] for curve in run.curves)


def test_where_each_step_is_a_case_they_are_one_run() -> None:
    times = ("t=999", "t=500", "t=500", "t=1")  # Heun's evaluates the U-Net twice at one timestep
    rows = [
        row(step, stage=stage, case=case)
        for stage in ("teacher_forced", "free_running")
        for step, case in enumerate(times, start=1)
    ]
    (run,) = run_curves(rows)
    assert run.case == ""
    assert [list(curve.rows) for curve in run.curves] == [[1, 2, 3, 4]] * 2


def test_the_only_run_keeps_its_name() -> None:
    (run,) = run_curves([row(1), row(2)])
    assert run.case == "seed 0"


def test_what_stopped_a_run_is_kept() -> None:
    stop = replace(row(3, None, stage="finiteness", case="its own run"), verdict="failed")
    (run,) = run_curves([row(1), row(2), stop, row(4, stage="finiteness")])
    assert run.stops == ((3, stop),)
    (lost,) = run_curves([stop])
    assert (lost.curves, lost.stops) == ((), ((3, stop),))


def test_what_stopped_one_of_several_runs_is_that_run_s() -> None:
    runs = [row(1, case=case) for case in ("seed 0", "seed 1")]
    stop = replace(row(2, None, stage="finiteness", case="seed 1"), verdict="failed")
    first, second = run_curves([*runs, stop])
    assert (first.stops, second.stops) == ((), ((2, stop),))
    unnamed = replace(stop, case="somewhere")
    assert [run.stops for run in run_curves([*runs, unnamed])] == [((2, unnamed),)] * 2


@pytest.mark.parametrize("order", [1, -1])
def test_the_guided_prediction_is_drawn(order: int) -> None:
    branches: tuple[Branch, ...] = ("unconditional", "guided", "conditional")
    rows = [row(1, 10.0**place, branch=branch) for place, branch in enumerate(branches)]
    (run,) = run_curves(rows[::order])
    assert run.curves[0].rows[1].branch == "guided"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("worst", [5.0, math.nan, math.inf])
def test_of_several_rows_of_a_step_the_worst_is_drawn(order: int, worst: float) -> None:
    rows = [row(1, 1e-6), replace(row(1, worst), tensor="other"), row(1, 1e-3)]
    (run,) = run_curves(rows[::order])
    assert run.curves[0].rows[1].tensor == "other"


def test_nothing_to_draw() -> None:
    assert run_curves([]) == ()
    assert run_curves([row(None)]) == ()
