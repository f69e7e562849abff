"""Which limit a row is held to, and whether it keeps it."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.parity.budget import Budget, BudgetEntry
from triptych.parity.compare import compare
from triptych.parity.floors import Arithmetic, Floor, arithmetic_of, floor_table, floors_from_rows
from triptych.parity.gates import PASS_RATIO, WARN_RATIO, Gates, judged
from triptych.parity.limits import COMPONENT_REL_L2, TRAJECTORY_REL_L2, guided_limit
from triptych.parity.report import Row, Stage, with_comparison
from triptych.types import ComponentName, Precision

DISTANCES = st.floats(min_value=1e-9, max_value=1e3)


def row(
    rel_l2: float,
    *,
    precision: Precision = "fp32",
    ran: str = "fp32",
    stage: Stage = "component",
    case: str = "t=1",
) -> Row:
    """As measured: a distance of the wanted size, which `with_comparison` did not see."""
    expected = np.ones((2, 3), np.float32)
    found = compare(expected, expected, component="unet", tensor="noise_pred")
    bare = Row(stage=stage, component="unet", case=case, precision=precision, ran=ran)
    return replace(with_comparison(bare, found), rel_l2=rel_l2)


def gates(
    floors: Mapping[str, float] | None = None,
    *,
    arithmetic: Arithmetic = "fp16",
    budget: float | None = None,
    self_difference: float = 0.0,
) -> Gates:
    measured = [
        Floor(
            arithmetic=arithmetic,
            stage="component",
            component="unet",
            case=case,
            tensor="noise_pred",
            rel_l2=rel_l2,
        )
        for case, rel_l2 in (floors or {}).items()
    ]
    entries = [] if budget is None else [entry(budget)]
    component: ComponentName = "unet"
    return Gates(
        runtime="onnxruntime",
        guidance_scale=5.0,
        floors=floor_table(measured),
        budget=Budget(entries=tuple(entries)),
        self_difference={component: self_difference},
    )


def entry(limit: float, precision: Precision = "fp32") -> BudgetEntry:
    return BudgetEntry(
        runtime="onnxruntime",
        precision=precision,
        stage="component",
        component="unet",
        tensor="noise_pred",
        measured=limit / 1.5,
        limit=limit,
        accepted="2026-01-01",
        machine="one",
    )


@given(rel_l2=DISTANCES, floor=DISTANCES)
def test_the_ratio_to_the_floor_decides(rel_l2: float, floor: float) -> None:
    found = judged(row(rel_l2, precision="fp16", ran="fp16"), gates({"t=1": floor}))
    exact = COMPONENT_REL_L2["fp32"]
    if rel_l2 <= max(PASS_RATIO * floor, exact):
        assert found.verdict == "passed"
    elif rel_l2 <= max(WARN_RATIO * floor, exact):
        assert found.verdict == "warned"
    else:
        assert found.verdict == "failed"
    assert found.floor == floor
    assert found.ratio == rel_l2 / floor
    assert (found.reason == "") == (found.verdict == "passed")
    assert found.limit_source == "floor"


@given(rel_l2=DISTANCES, floor=DISTANCES)
def test_weights_rounded_alike_are_not_only_warned_about(rel_l2: float, floor: float) -> None:
    found = judged(
        row(rel_l2, precision="fp16", ran="fp32"),
        gates({"t=1": floor}, arithmetic="fp16_weights"),
    )
    passes = rel_l2 <= max(PASS_RATIO * floor, COMPONENT_REL_L2["fp32"])
    assert found.verdict == ("passed" if passes else "failed")


def test_a_floor_is_at_least_the_median_of_its_kind() -> None:
    """A case whose rounding happens to be small is luck, which nobody else needs to have."""
    measured = gates({"lucky": 1e-6, "t=1": 1e-3, "t=2": 2e-3})
    lucky = judged(row(1.5e-3, precision="fp16", ran="fp16", case="lucky"), measured)
    assert (lucky.floor, lucky.verdict) == (1e-3, "passed")
    large = judged(row(3e-3, precision="fp16", ran="fp16", case="t=2"), measured)
    assert (large.floor, large.verdict) == (2e-3, "passed")


def test_a_component_whose_floor_is_0_is_held_to_float32() -> None:
    """A VAE that stays in fp32 in every PyTorch run."""
    exact = gates({"t=1": 0.0})
    assert judged(row(9e-6, precision="fp16", ran="fp16"), exact).verdict == "passed"
    failed = judged(row(2e-5, precision="fp16", ran="fp16"), exact)
    assert (failed.verdict, failed.ratio) == ("failed", None)


@given(rel_l2=DISTANCES, limit=DISTANCES)
def test_a_budget_counts_where_there_is_no_floor(rel_l2: float, limit: float) -> None:
    found = judged(row(rel_l2), gates(budget=limit))
    assert found.verdict == ("passed" if rel_l2 <= limit else "failed")
    assert found.limit_source == "budget"
    other = judged(row(rel_l2, precision="int8"), gates(budget=limit))
    assert other.limit_source == "constant"


def test_a_budget_does_not_excuse_what_a_floor_forbids() -> None:
    both = replace(gates({"t=1": 1e-3}), budget=Budget(entries=(entry(1.0, precision="fp16"),)))
    found = judged(row(5e-3, precision="fp16", ran="fp16"), both)
    assert (found.verdict, found.limit_source) == ("failed", "floor")


@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        ("component", COMPONENT_REL_L2["bf16"]),
        ("teacher_forced", guided_limit("bf16", 5.0)),
        ("self_state", guided_limit("bf16", 5.0)),
        ("free_running", TRAJECTORY_REL_L2["bf16"]),
        ("image", TRAJECTORY_REL_L2["bf16"]),
    ],
)
def test_constants_are_the_last_resort(stage: Stage, limit: float) -> None:
    found = judged(row(1e-9, precision="bf16", ran="bf16", stage=stage), gates())
    assert (found.limit, found.warn_limit, found.limit_source) == (limit, limit, "constant")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_never_passes(value: float) -> None:
    for held_to in (gates(), gates(budget=math.inf), gates({"t=1": 1e9})):
        measured = row(value, precision="fp32" if held_to.budget.entries else "fp16", ran="fp16")
        assert judged(measured, held_to).verdict == "failed"


@pytest.mark.parametrize(
    "spoilt",
    [replace(row(0.0), finite_actual=False), replace(row(0.0), finite_expected=False)],
    ids=["actual", "expected"],
)
def test_a_tensor_that_is_not_finite_never_passes(spoilt: Row) -> None:
    found = judged(spoilt, gates())
    assert (found.verdict, found.reason) == ("failed", "got NaN or infinity")


def test_rows_without_numbers_keep_their_verdict() -> None:
    for verdict in ("passed", "failed", "not_run"):
        kept = Row(stage="precision", component="unet", case="", precision="fp32", verdict=verdict)
        assert judged(kept, gates()) == kept


def test_nobody_is_nearer_than_an_engine_to_itself() -> None:
    noisy = gates(self_difference=4e-6)
    assert judged(row(7e-6), noisy).limit == COMPONENT_REL_L2["fp32"]
    wide = gates({"t=1": 1e-7}, self_difference=1e-3)
    assert judged(row(1.9e-3, precision="fp16", ran="fp16"), wide).verdict == "passed"


def test_an_engine_that_does_not_repeat_itself_is_excused_up_to_the_constant_alone() -> None:
    wild = gates(self_difference=0.5)
    assert judged(row(2e-5), wild).verdict == "failed"
    assert judged(row(2e-2, precision="fp16", ran="fp16"), wild).verdict == "failed"


def test_judging_again_by_other_limits_forgets_the_first() -> None:
    first = judged(row(5e-3, precision="fp16", ran="fp16"), gates({"t=1": 1e-3}))
    again = judged(first, gates())
    assert (first.verdict, again.verdict) == ("failed", "passed")
    assert (again.floor, again.ratio, again.reason) == (None, None, "")


@pytest.mark.parametrize(
    ("precision", "ran", "arithmetic"),
    [
        ("fp16", "fp16", "fp16"),
        ("fp16", "fp32", "fp16_weights"),
        ("bf16", "bf16", "bf16"),
        ("fp32", "fp32", None),
        ("int8", "fp32", None),
        ("palette4", "fp16", None),
    ],
)
def test_which_of_pytorch_s_runs_is_the_scale(
    precision: Precision, ran: str, arithmetic: Arithmetic | None
) -> None:
    assert arithmetic_of(precision, ran) == arithmetic


def test_without_a_floor_for_rounded_weights_that_of_fp16_serves() -> None:
    found = judged(row(1.5e-3, precision="fp16", ran="fp32"), gates({"t=1": 1e-3}))
    assert (found.floor, found.verdict) == (1e-3, "passed")


def test_floors_are_the_rows_of_a_check_of_pytorch_itself() -> None:
    missing = Row(stage="image", component="unet", case="", precision="fp32")
    spoilt = replace(row(1.0), finite_actual=False)
    (floor,) = floors_from_rows([row(1e-3), missing, spoilt], "bf16")
    assert (floor.arithmetic, floor.case, floor.rel_l2) == ("bf16", "t=1", 1e-3)
