"""The drawing: where values lie, that nothing is lost, and that it says in words what it shows."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from triptych.parity.html.chart import Axes, common_axes, curve_chart
from triptych.parity.html.curves import RunCurves, run_curves
from triptych.parity.report import Row, Stage


def run_of(*errors: float | None, stage: Stage = "free_running", reason: str = "") -> RunCurves:
    rows = [
        Row(
            stage=stage,
            component="unet",
            case="seed 0",
            precision="fp32",
            step=step,
            rel_l2=error,
            limit=1e-4,
            floor=1e-6,
            verdict="passed",
            reason=reason,
        )
        for step, error in enumerate(errors, start=1)
    ]
    (run,) = run_curves(rows)
    return run


def drawn(run: RunCurves) -> ET.Element:
    chart = curve_chart(run, common_axes([run]), title="x", identifier="c")
    return ET.fromstring(chart)  # noqa: S314  our own drawing


def test_axes_hold_every_error_limit_and_floor() -> None:
    axes = common_axes([run_of(3e-3, 0.2), run_of(5e-9, math.nan, math.inf, 0.0)])
    assert (axes.num_steps, axes.low, axes.high) == (4, -9, 0)


def test_larger_is_higher_by_decades() -> None:
    axes = Axes(num_steps=4, low=-6, high=0)
    heights = [axes.y(value) for value in (1.0, 1e-2, 1e-4, 1e-6)]
    assert heights == sorted(heights)
    gaps = [second - first for first, second in pairwise(heights)]
    assert gaps == pytest.approx([gaps[0]] * 3)
    assert axes.y(0.0) == axes.y(1e-6)


def test_axes_of_nothing_but_nan_can_be_drawn() -> None:
    assert drawn(run_of(math.nan)) is not None


@pytest.mark.parametrize("stage", ["teacher_forced", "free_running", "self_state"])
@pytest.mark.parametrize("lost", [math.nan, math.inf, None])
def test_a_step_without_a_number_is_a_mark_of_its_own_and_breaks_the_line(
    stage: Stage, lost: float | None
) -> None:
    chart = drawn(run_of(1e-3, 2e-3, lost, 3e-3, stage=stage))
    (mark,) = (group for group in chart.iter("g") if "no-number" in group.get("class", ""))
    assert "step 3" in mark.findtext("title", "")
    (line,) = (path for path in chart.iter("path") if path.get("class") == f"line {stage}")
    assert line.get("d", "").count("M") == 2
    word = "not measured" if lost is None else "not finite"
    assert word in [found.text for found in chart.iter("text")]
    assert "no finite number at [3]" in chart.findtext("desc", "")


def test_what_stopped_a_run_is_marked_with_its_reason() -> None:
    stop = Row(
        stage="finiteness",
        component="unet",
        case="own run",
        step=6,
        precision="fp32",
        verdict="failed",
        reason="NaN at step 6",
    )
    for curves in (run_of(1e-3, 2e-3).curves, ()):
        chart = drawn(RunCurves(case="", curves=curves, stops=((6, stop),)))
        (mark,) = (group for group in chart.iter("g") if group.get("class") == "no-number stop")
        assert mark.findtext("title") == "own run: NaN at step 6"
        assert "not finite" in [found.text for found in chart.iter("text")]
        assert "Stopped at step 6." in chart.findtext("desc", "")
        assert "6" in [found.text for found in chart.iter("text")]


def test_every_step_has_a_mark_that_says_its_number() -> None:
    chart = drawn(run_of(1e-3, 0.0, 3e-3))
    titles = [group.findtext("title", "") for group in chart.iter("g")]
    assert titles == [
        "free running, step 1: 1.00e-3, limit 0.0001, floor 1e-6, passed",
        "free running, step 2: 0, limit 0.0001, floor 1e-6, passed",
        "free running, step 3: 3.00e-3, limit 0.0001, floor 1e-6, passed",
    ]


def test_limits_and_floors_are_drawn_and_named_once() -> None:
    stages: tuple[Stage, ...] = ("teacher_forced", "free_running", "self_state")
    curves = tuple(run_of(1e-3, 1e-2, stage=stage).curves[0] for stage in stages)
    chart = drawn(RunCurves(case="", curves=curves))
    labels = [found.text for found in chart.iter("text")]
    assert "limit L, F, S" in labels
    assert "floor L, F, S" in labels
    for kind in ("limit", "floor"):
        kinds = [path.get("class", "") for path in chart.iter("path")]
        assert [found for found in kinds if found.startswith(kind)] == [
            f"{kind} {stage}" for stage in stages
        ]


def test_labels_do_not_lie_on_each_other() -> None:
    stages: tuple[Stage, ...] = ("teacher_forced", "free_running", "self_state")
    curves = tuple(run_of(1e-4, 1e-4, stage=stage).curves[0] for stage in stages)
    chart = drawn(RunCurves(case="", curves=curves))
    heights = sorted(
        float(found.get("y", "nan"))
        for found in chart.iter("text")
        if (found.text or "").split(" ")[0] in ("L", "F", "S", "limit", "floor")
    )
    assert len(heights) == 5
    assert all(low - high >= 13 for high, low in pairwise(heights))


def test_words_in_a_chart_are_text() -> None:
    chart = drawn(run_of(1e-3, reason="<b>why</b> & how"))
    assert "(<b>why</b> & how)" in chart.find("g").findtext("title", "")  # type: ignore[union-attr]  # there is one
