"""What must be exactly equal, and how a difference is told."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import IncomparableError
from triptych.parity.preconditions import (
    Fact,
    array_sha256,
    check_preconditions,
    precondition_texts,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def check(actual: dict[str, Fact], expected: dict[str, Fact]) -> None:
    check_preconditions(actual, expected, candidate="ours", reference="theirs")


def differences(actual: dict[str, Fact], expected: dict[str, Fact]) -> tuple[str, ...]:
    with pytest.raises(IncomparableError) as caught:
        check(actual, expected)
    assert caught.value.exit_code == 3
    return caught.value.differences


@given(st.dictionaries(st.text(max_size=5), FACTS, max_size=5))
def test_equal_facts_are_comparable(facts: dict[str, object]) -> None:
    check(facts, dict(reversed(facts.items())))


@given(facts=st.dictionaries(st.text(max_size=5), FACTS, min_size=1, max_size=5), other=FACTS)
def test_a_fact_more_is_a_difference(facts: dict[str, object], other: object) -> None:
    if other is not None:
        assert len(differences({**facts, "another one": other}, facts)) == 1
        assert len(differences(facts, {**facts, "another one": other})) == 1


@given(values=st.lists(NUMBERS, min_size=1, max_size=5), data=st.data())
def test_one_element_off_is_a_difference(values: list[float], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(values) - 1))
    changed = list(values)
    changed[index] = 1.0 if values[index] == 0 else values[index] * (1 + 1e-9)
    if math.isinf(changed[index]):
        return
    (text,) = differences({"sigmas": changed}, {"sigmas": values})
    assert f"first at element {index}" in text


def test_the_last_bit_of_a_library_s_logarithm_is_no_difference() -> None:
    sigma = 14.614641
    check({"sigmas": [sigma, np.nextafter(sigma, 15).item()]}, {"sigmas": [sigma, sigma]})


def test_nan_is_equal_to_nothing() -> None:
    assert differences({"sigma": math.nan}, {"sigma": math.nan})


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(1, 1.0), (True, 1), ("1", 1), (None, 0), ([1], 1), ([], {}), ([1, 2], [1]), (0.0, 1e-13)],
)
def test_what_only_looks_alike_is_a_difference(actual: object, expected: object) -> None:
    assert len(differences({"fact": actual}, {"fact": expected})) == 1


def test_lists_and_tuples_are_alike() -> None:
    """One side was in memory, the other in a file."""
    check({"steps": (0, 8), "betas": {"a": (1.5,)}}, {"steps": [0, 8], "betas": {"a": [1.5]}})


def test_everything_that_differs_is_named_in_order() -> None:
    found = differences(
        {"b": 1, "a": "x", "same": [1]}, {"b": 2, "a": "y", "same": [1], "more": None, "c": 0.5}
    )
    assert found == ('a "x" and "y"', "b 1 and 2", "c null and 0.5")


def test_the_message_names_both_sides() -> None:
    with pytest.raises(IncomparableError, match=r"ours: cannot be compared with theirs\. They"):
        check({"a": 1}, {"a": 2})


def test_long_facts_are_told_by_their_hash() -> None:
    texts = precondition_texts({"short": [1, 2], "long": list(range(99))})
    assert texts["short"] == "[1, 2]"
    assert texts["long"].startswith("sha256 ")
    assert texts["long"] != precondition_texts({"long": list(range(1, 100))})["long"]


def test_hashes_tell_values_shapes_and_dtypes_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    others = [
        zeros.T.copy(),
        zeros.astype(np.int32),
        zeros + np.float32(1e-30),
        np.zeros((1, 2, 3), np.float32),
        np.zeros((), np.float32),
    ]
    hashes = {array_sha256(array) for array in [zeros, *others]}
    assert len(hashes) == 6
    assert array_sha256(np.asfortranarray(zeros)) == array_sha256(zeros)
