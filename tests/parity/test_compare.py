"""A comparison measures without raising; `passes` says no whenever the numbers do not say yes."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triptych.errors import TensorMismatchError
from triptych.parity import metrics
from triptych.parity.compare import Comparison, compare, comparison_record, passes
from triptych.types import Array

quick = settings(deadline=None, max_examples=40)
METRIC_FIELDS = ("rel_l2", "cosine", "psnr_db", "max_abs", "p99_abs", "bias")
NOT_FINITE = [math.nan, math.inf, -math.inf]
PAIRS = hnp.array_shapes(min_dims=0, max_dims=4, max_side=4).flatmap(
    lambda shape: st.tuples(
        *[hnp.arrays(np.float32, shape, elements=st.floats(-1e3, 1e3, width=32))] * 2
    )
)


def measure(actual: Array, expected: Array) -> Comparison:
    return compare(actual, expected, component="unet", tensor="noise_pred")


def gaussian(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- what is recorded ----------------------------------------------------------------------------


def test_every_field_is_the_metric_of_its_name() -> None:
    expected = gaussian(2, 4, 8, 8)
    actual = expected + np.float32(0.01) * gaussian(2, 4, 8, 8, seed=1)
    actual[1, 3, 0, 5] -= 7

    comparison = measure(actual, expected)

    assert comparison.component == "unet"
    assert comparison.tensor == "noise_pred"
    assert comparison.shape == (2, 4, 8, 8)
    assert comparison.size == 512
    assert comparison.finite_actual
    assert comparison.finite_expected
    assert comparison.rel_l2 == metrics.rel_l2(actual, expected)
    assert comparison.cosine == metrics.cosine(actual, expected)
    assert comparison.psnr_db == metrics.psnr_db(actual, expected)
    assert comparison.max_abs == pytest.approx(7, abs=0.1)
    assert comparison.max_abs_index == (1, 3, 0, 5)
    assert comparison.p99_abs == pytest.approx(0.0258, abs=0.01)
    assert comparison.rms_expected == metrics.rms(expected)
    assert comparison.bias == metrics.bias(actual, expected)
    assert comparison.bias < 0


def test_actual_and_expected_keep_their_places() -> None:
    expected = np.array([1.0, 2.0])

    assert measure(expected * 2, expected).rel_l2 == pytest.approx(1)
    assert measure(expected, expected * 2).rel_l2 == pytest.approx(0.5)
    assert measure(expected * 2, expected).rms_expected == metrics.rms(expected)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_each_side_answers_for_itself(value: float) -> None:
    clean, broken = np.ones((2, 3)), np.ones((2, 3))
    broken[1, 1] = value

    number_for_reference = measure(broken, clean)
    assert (number_for_reference.finite_actual, number_for_reference.finite_expected) == (
        False,
        True,
    )
    assert number_for_reference.rms_expected == 1

    number_for_candidate = measure(clean, broken)
    assert (number_for_candidate.finite_actual, number_for_candidate.finite_expected) == (
        True,
        False,
    )
    assert math.isnan(number_for_candidate.rms_expected)


def test_a_comparison_does_not_change() -> None:
    comparison = measure(np.ones(2), np.ones(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.rel_l2 = 0.0  # type: ignore[misc]


# --- what cannot be compared ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actual", "expected", "why"),
    [
        (np.ones((1, 4)), np.ones((4, 4)), "Nothing is broadcast"),
        (np.ones(()), np.ones((4, 4)), "Nothing is broadcast"),
        (np.ones((2, 2), np.uint8), np.ones((2, 2), np.float32), "kinds may not"),
        (np.ones((2, 2), np.bool_), np.ones((2, 2), np.bool_), "integers or floats"),
        (np.ones((0, 4)), np.ones((0, 4)), "empty tensor"),
    ],
    ids=["would broadcast", "scalar", "kinds", "bool", "empty"],
)
def test_what_cannot_be_compared_raises_with_its_name(
    actual: Array, expected: Array, why: str
) -> None:
    with pytest.raises(TensorMismatchError, match=why) as caught:
        compare(actual, expected, component="vae_decoder", tensor="sample")
    assert (caught.value.component, caught.value.tensor) == ("vae_decoder", "sample")
    assert "vae_decoder 'sample': got" in str(caught.value)


# --- passing -------------------------------------------------------------------------------------


def test_equal_tensors_pass_the_strictest_limit() -> None:
    tensor = gaussian(2, 4, 8, 8)
    assert passes(measure(tensor, tensor), rel_l2_limit=0.0)


def test_the_limit_itself_passes_and_anything_below_it_does_not() -> None:
    comparison = measure(np.array([1.5]), np.array([1.0]))
    assert comparison.rel_l2 == 0.5

    assert passes(comparison, rel_l2_limit=0.5)
    assert not passes(comparison, rel_l2_limit=math.nextafter(0.5, 0))


@pytest.mark.parametrize("limit", [1e-5, 1.0, 1e300, math.inf])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("side", ["actual", "expected", "both"])
def test_what_is_not_finite_never_passes(limit: float, value: float, side: str) -> None:
    clean, broken = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    broken[1, 1] = value
    comparison = measure(
        clean if side == "expected" else broken, clean if side == "actual" else broken
    )

    assert not passes(comparison, rel_l2_limit=limit)
    assert comparison.max_abs_index == (1, 1)
    assert all(math.isnan(getattr(comparison, name)) for name in METRIC_FIELDS)


@pytest.mark.parametrize("limit", [math.nan, -1.0, -math.inf])
def test_a_limit_that_nothing_can_meet_passes_nothing(limit: float) -> None:
    assert not passes(measure(np.ones(3), np.ones(3)), rel_l2_limit=limit)


@pytest.mark.parametrize("flag", ["finite_actual", "finite_expected"])
def test_the_finite_flags_are_asked_whatever_the_number_says(flag: str) -> None:
    good = measure(np.ones(3), np.ones(3))
    without_flag = dataclasses.replace(good, **{flag: False})  # type: ignore[arg-type]

    assert passes(good, rel_l2_limit=1e-5)
    assert not passes(without_flag, rel_l2_limit=1e-5)


def test_a_nan_distance_between_finite_tensors_does_not_pass() -> None:
    overflow = measure(np.array([1.7e308]), np.array([-1.7e308]))

    assert overflow.finite_actual
    assert overflow.finite_expected
    assert math.isnan(overflow.rel_l2)
    assert not passes(overflow, rel_l2_limit=math.inf)


def test_a_reference_of_zeros_passes_only_zeros() -> None:
    zeros, almost = np.zeros(4, np.float32), np.full(4, 1e-30, np.float32)

    assert passes(measure(zeros, zeros), rel_l2_limit=1e-5)
    assert not passes(measure(almost, zeros), rel_l2_limit=1e-5)
    assert not passes(measure(almost, zeros), rel_l2_limit=math.inf)


@pytest.mark.parametrize(
    "actual",
    [
        pytest.param(gaussian(1, 4, 16, 16, seed=1), id="another output"),
        pytest.param(gaussian(1, 4, 16, 16)[:, [1, 0, 2, 3]], id="channels permuted"),
        pytest.param(gaussian(1, 4, 16, 16).swapaxes(2, 3), id="height and width swapped"),
        pytest.param(gaussian(1, 4, 16, 16) + np.float32(0.05), id="offset"),
        pytest.param(gaussian(1, 4, 16, 16) * np.float32(1.05), id="scaled"),
        pytest.param(-gaussian(1, 4, 16, 16), id="negated"),
        pytest.param(np.zeros((1, 4, 16, 16), np.float32), id="black"),
        pytest.param(np.roll(gaussian(1, 4, 16, 16), 1, axis=3), id="moved by a cell"),
    ],
)
def test_wrong_exports_do_not_pass_as_half_precision(actual: Array) -> None:
    # 1e-2 is the loosest limit given to float16
    assert not passes(measure(actual, gaussian(1, 4, 16, 16)), rel_l2_limit=1e-2)


def test_honest_float16_rounding_passes_as_half_precision_and_not_as_single() -> None:
    expected = gaussian(1, 4, 16, 16)
    comparison = measure(expected.astype(np.float16), expected)

    assert passes(comparison, rel_l2_limit=3e-3)
    assert not passes(comparison, rel_l2_limit=1e-5)


@quick
@given(PAIRS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_looser_limit_never_fails_what_a_stricter_one_passed(
    pair: tuple[Array, Array], one: float, other: float
) -> None:
    comparison = measure(*pair)
    strict, loose = sorted((one, other))

    assert passes(comparison, rel_l2_limit=loose) or not passes(comparison, rel_l2_limit=strict)


@quick
@given(PAIRS, st.data())
def test_any_one_element_that_is_not_finite_fails_every_limit(
    pair: tuple[Array, Array], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, pair[0].size - 1))
    side = data.draw(st.sampled_from(["actual", "expected", "both"]))
    value = data.draw(st.sampled_from(NOT_FINITE))
    for name, tensor in zip(("actual", "expected"), pair, strict=True):
        if side in (name, "both"):
            tensor.flat[position] = value

    comparison = measure(*pair)

    assert all(math.isnan(getattr(comparison, name)) for name in METRIC_FIELDS)
    assert comparison.max_abs_index == np.unravel_index(position, pair[0].shape)
    assert comparison.finite_actual == (side == "expected")
    assert comparison.finite_expected == (side == "actual")
    assert not passes(comparison, rel_l2_limit=data.draw(st.floats(allow_nan=True)))


# --- as JSON -------------------------------------------------------------------------------------


def test_a_record_is_strict_json_in_the_order_of_the_fields() -> None:
    comparison = measure(gaussian(2, 4), gaussian(2, 4, seed=1))
    record = comparison_record(comparison)

    assert list(record) == [field.name for field in dataclasses.fields(Comparison)]
    assert record["shape"] == [2, 4]
    assert record["max_abs_index"] == list(comparison.max_abs_index)
    assert record["rel_l2"] == comparison.rel_l2
    assert record["finite_actual"] is True
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize(
    ("actual", "field", "text"),
    [
        (np.array([math.nan, 0.0]), "rel_l2", "nan"),
        (np.array([1.0, 0.0]), "rel_l2", "inf"),
        (np.array([-1.0, 0.0]), "bias", "-inf"),
    ],
)
def test_what_json_cannot_hold_becomes_a_string(actual: Array, field: str, text: str) -> None:
    comparison = measure(actual, np.zeros(2))
    record = comparison_record(comparison)

    assert record[field] == text
    assert float(text) == pytest.approx(getattr(comparison, field), nan_ok=True)
    json.dumps(record, allow_nan=False)


@quick
@given(
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=3).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float32, shape)] * 2)
    )
)
def test_every_comparison_can_be_written_and_read_back(pair: tuple[Array, Array]) -> None:
    comparison = measure(*pair)
    record = json.loads(json.dumps(comparison_record(comparison), allow_nan=False))

    for field in dataclasses.fields(Comparison):
        value = getattr(comparison, field.name)
        if isinstance(value, float):
            assert float(record[field.name]) == pytest.approx(value, rel=0, abs=0, nan_ok=True)
        else:
            assert record[field.name] == (list(value) if isinstance(value, tuple) else value)
