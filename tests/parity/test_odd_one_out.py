"""Who is far from the others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.parity.odd_one_out import find_odd_one_out
from triptych.types import Array

NAMES = ("reference", "onnxruntime", "openvino", "coreml-reference")


def results(errors: dict[str, float]) -> dict[str, Array]:
    """Noise of one size each, around one tensor."""
    right = np.random.default_rng(0).standard_normal(4096)
    return {
        name: right + error * np.random.default_rng(index).standard_normal(4096)
        for index, (name, error) in enumerate(errors.items(), start=1)
    }


@pytest.mark.parametrize("odd", NAMES)
@pytest.mark.parametrize("count", [3, 4])
def test_the_odd_one_is_named_and_may_be_the_reference(odd: str, count: int) -> None:
    names = [odd, *(name for name in NAMES if name != odd)][:count]
    found = find_odd_one_out(results({name: 1e-3 if name == odd else 1e-6 for name in names}))
    assert found is not None
    assert found.odd == odd
    assert found.factor > 100
    assert found.participants == tuple(names)


@given(st.lists(st.floats(min_value=1e-6, max_value=2e-6), min_size=3, max_size=4))
def test_nobody_is_odd_among_equals(errors: list[float]) -> None:
    found = find_odd_one_out(results(dict(zip(NAMES, errors, strict=False))))
    assert found is not None
    assert found.odd == ""
    assert found.factor < 4


def test_two_do_not_say_who_is_wrong() -> None:
    assert find_odd_one_out(results({"reference": 1e-6, "openvino": 1e-1})) is None


def test_one_that_differs_from_equal_ones_is_odd() -> None:
    same = np.ones(8)
    found = find_odd_one_out({"a": same, "b": same, "c": same + 1e-9})
    assert found is not None
    assert (found.odd, found.factor) == ("c", float("inf"))


def test_all_equal() -> None:
    found = find_odd_one_out(dict.fromkeys(NAMES, np.ones(8)))
    assert found is not None
    assert (found.odd, found.factor) == ("", 1.0)
    assert found.distances == ((0.0,) * 4,) * 4
