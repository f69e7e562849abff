"""The verdict of all rows, the worst of each kind, and the smallest limit that would pass."""

import math

import numpy as np
import pytest

from triptych.parity.compare import Comparison, compare
from triptych.parity.report import (
    Row,
    Stage,
    overall,
    smallest_passing,
    with_comparison,
    worst_rows,
)
from triptych.types import ComponentName, Verdict


def distance(error: float) -> Comparison:
    expected = np.ones((2, 3), np.float32)
    return compare(expected + np.float32(error), expected, component="unet", tensor="noise_pred")


def row(
    verdict: Verdict = "passed",
    *,
    stage: Stage = "component",
    component: ComponentName = "unet",
    case: str = "t=1",
    comparison: Comparison | None = None,
) -> Row:
    found = Row(
        stage=stage,
        component=component,
        case=case,
        precision="fp32",
        limit=1e-5,
        verdict=verdict,
        reason="" if verdict == "passed" else "why",
    )
    return found if comparison is None else with_comparison(found, comparison)


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["passed", "passed"], "passed"),
        (["passed", "not_run"], "not_run"),
        (["not_run"], "not_run"),
        (["not_run", "failed", "passed"], "failed"),
        (["failed"], "failed"),
        (["passed", "warned"], "warned"),
        (["warned", "not_run"], "not_run"),
        (["warned", "failed"], "failed"),
        ([], "not_run"),  # nothing ran, so nothing has passed
    ],
)
def test_failed_outweighs_not_run_outweighs_passed(
    verdicts: list[Verdict], verdict: Verdict
) -> None:
    assert overall(verdicts) == verdict
    assert overall(reversed(verdicts)) == verdict


def test_worst_is_one_row_for_each_stage_and_component() -> None:
    found = worst_rows(
        [
            row(comparison=distance(0.0), stage="teacher_forced"),
            row(comparison=distance(1e-7), case="near"),
            row(comparison=distance(1e-6), case="far"),
            row("not_run", component="vae_encoder"),
        ]
    )
    assert [(one.stage, one.component, one.case) for one in found] == [
        ("component", "unet", "far"),
        ("component", "vae_encoder", "t=1"),
        ("teacher_forced", "unet", "t=1"),
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_worst_goes_by_verdict_first_and_nan_is_furthest(order: int) -> None:
    rows = [
        row("passed", comparison=distance(0.5), case="passed"),
        row("not_run", case="not run"),
        row("failed", comparison=distance(0.1), case="failed"),
    ]
    (worst,) = worst_rows(rows[::order])
    assert worst.case == "failed"
    rows.append(row("failed", comparison=distance(math.nan), case="nan"))
    (worst,) = worst_rows(rows[::order])
    assert worst.case == "nan"


def test_the_smallest_limit_that_would_pass_is_the_largest_distance() -> None:
    rows = [
        row(comparison=distance(1e-7)),
        row(comparison=distance(1e-6)),
        row(comparison=distance(math.nan), component="vae_decoder"),
        row("not_run", component="vae_encoder"),
    ]
    found = smallest_passing(rows)
    assert found["component", "unet"] == pytest.approx(1e-6, rel=0.1)
    assert found["component", "vae_decoder"] == math.inf
    assert found["component", "vae_encoder"] == math.inf
