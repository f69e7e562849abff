"""Which limit belongs to which arithmetic."""

import math

import pytest

from triptych.parity.limits import COMPONENT_REL_L2, TRAJECTORY_REL_L2, coarsest, guided_limit
from triptych.types import PRECISIONS, Precision


@pytest.mark.parametrize("limits", [COMPONENT_REL_L2, TRAJECTORY_REL_L2])
def test_coarser_arithmetic_has_wider_limits(limits: dict[Precision, float]) -> None:
    assert set(limits) == set(PRECISIONS)
    ordered = [limits[precision] for precision in PRECISIONS]
    assert ordered == sorted(ordered)
    assert 0 < limits["fp32"] < limits["fp16"] < limits["palette8"] < limits["bf16"] < 1


def test_a_run_has_more_room_than_one_component() -> None:
    for precision in PRECISIONS:
        assert COMPONENT_REL_L2[precision] < TRAJECTORY_REL_L2[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_guidance_multiplies_the_room_by_its_two_halves(precision: Precision) -> None:
    limit = COMPONENT_REL_L2[precision]
    assert guided_limit(precision, 5.0) == pytest.approx(limit * math.sqrt(5**2 + 4**2))
    assert guided_limit(precision, 7.5) == pytest.approx(limit * 9.92, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.0])
def test_no_guidance_gives_no_extra_room(scale: float) -> None:
    assert guided_limit("fp32", scale) == COMPONENT_REL_L2["fp32"]


def test_the_least_exact_component_decides_for_a_run() -> None:
    assert coarsest(["fp16", "fp32"]) == "fp16"
    assert coarsest(["fp16", "bf16", "fp32"]) == "bf16"
    assert coarsest(["fp32"]) == "fp32"
    assert coarsest([]) == "fp32"
