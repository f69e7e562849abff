"""The judge is tested before it is trusted: known answers, ways to fool it, laws it must keep."""

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triptych.errors import TensorMismatchError
from triptych.parity.metrics import (
    Peak,
    bias,
    check_comparable,
    cosine,
    max_abs,
    p99_abs,
    psnr_db,
    rel_l2,
    rms,
)
from triptych.types import Array

Metric = Callable[[Array, Array], float]


def max_abs_value(actual: Array, expected: Array) -> float:
    return max_abs(actual, expected).value


METRICS: tuple[Metric, ...] = (rel_l2, cosine, psnr_db, bias, max_abs_value, p99_abs)
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
quick = settings(deadline=None, max_examples=40)

# from one axis up: arithmetic on arrays without axes gives NumPy scalars, not arrays
SHAPES = hnp.array_shapes(max_dims=4, max_side=4)
# magnitudes apart by 1e12 and exact zeros, but no squares beyond float64: the naive formulas that
# the properties compare with must hold
VALUES = st.just(0.0) | st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6)
# every finite float16 as its bits; st.floats(width=16) draws wider ones and throws most away
BITS = st.integers(0, 0x7BFF) | st.integers(0x8000, 0xFBFF)
POWERS_OF_TWO = st.integers(-40, 40).map(lambda exponent: 2.0**exponent)


@st.composite
def tensor_groups(draw: st.DrawFn, count: int = 2) -> tuple[Array, ...]:
    """Float64 tensors of one shape."""
    tensors = hnp.arrays(np.float64, draw(st.shared(SHAPES)), elements=VALUES)
    return tuple(draw(tensors) for _ in range(count))


def gaussian(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- known answers -------------------------------------------------------------------------------


def test_answers_worked_out_by_hand() -> None:
    actual = np.array([[3.0, 0.0], [0.0, 0.0]])
    expected = np.array([[3.0, -4.0], [0.0, 0.0]])

    assert rel_l2(actual, expected) == pytest.approx(4 / 5)
    assert cosine(actual, expected) == pytest.approx(9 / 15)
    # peak 4, rms of the difference √(16/4) = 2
    assert psnr_db(actual, expected) == pytest.approx(20 * math.log10(2))
    # mean difference 4/4, rms of the reference √(25/4)
    assert bias(actual, expected) == pytest.approx(1 / 2.5)
    assert max_abs(actual, expected) == Peak(value=4.0, index=(0, 1))
    # the sorted differences are 0, 0, 0, 4; the 99th percentile lies 0.97 of the way to the last
    assert p99_abs(actual, expected) == pytest.approx(0.97 * 4)
    assert rms(expected) == pytest.approx(2.5)


def test_equal_tensors_have_no_distance() -> None:
    tensor = gaussian(2, 4, 8, 8)

    assert rel_l2(tensor, tensor) == 0
    assert cosine(tensor, tensor) == pytest.approx(1, abs=1e-15)
    assert psnr_db(tensor, tensor) == math.inf
    assert bias(tensor, tensor) == 0
    assert max_abs(tensor, tensor) == Peak(value=0.0, index=(0, 0, 0, 0))
    assert p99_abs(tensor, tensor) == 0


def test_a_scale_of_one_percent_shows_in_rel_l2_and_not_in_cosine() -> None:
    expected = np.asarray(gaussian(2, 4, 16, 16), dtype=np.float64)
    actual = expected * 1.01

    assert rel_l2(actual, expected) == pytest.approx(0.01, rel=1e-12)
    assert cosine(actual, expected) == pytest.approx(1, abs=1e-15)


def test_a_constant_offset_shows_in_bias_with_its_sign() -> None:
    expected = np.asarray(gaussian(2, 4, 16, 16), dtype=np.float64)
    unit = rms(expected)

    assert bias(expected + 0.05 * unit, expected) == pytest.approx(0.05)
    assert bias(expected - 0.05 * unit, expected) == pytest.approx(-0.05)
    assert rel_l2(expected + 0.05 * unit, expected) == pytest.approx(0.05)


def test_noise_without_offset_has_almost_no_bias() -> None:
    expected = np.asarray(gaussian(1, 4, 64, 64), dtype=np.float64)
    noise = 0.05 * np.asarray(gaussian(1, 4, 64, 64, seed=1), dtype=np.float64)

    assert abs(bias(expected + noise, expected)) < 0.05 / 10


def test_permuted_channels_can_keep_cosine_high_but_not_rel_l2_low() -> None:
    # channels that share a large mean, as activations after a bias do
    expected = 3 + gaussian(1, 4, 16, 16)
    actual = expected[:, [2, 3, 0, 1]]

    assert cosine(actual, expected) > 0.85
    assert rel_l2(actual, expected) > 0.3


def test_swapped_outputs_are_far_apart() -> None:
    first, second = gaussian(2, 4, 16, 16), gaussian(2, 4, 16, 16, seed=1)

    assert rel_l2(first, second) > 1
    assert abs(cosine(first, second)) < 0.1
    assert psnr_db(first, second) < 15


def test_arguments_are_actual_then_expected() -> None:
    expected = np.array([1.0, -2.0, 3.0])
    actual = 2 * expected

    assert rel_l2(actual, expected) == pytest.approx(1)
    assert rel_l2(expected, actual) == pytest.approx(0.5)
    # the distance is the same both ways; only the reference's peak doubles
    assert psnr_db(expected, actual) - psnr_db(actual, expected) == pytest.approx(
        20 * math.log10(2)
    )
    assert bias(actual, expected) > 0 > bias(expected, actual)


# --- one outlier ---------------------------------------------------------------------------------


def test_one_outlier_cannot_raise_its_own_score() -> None:
    expected = np.asarray(gaussian(1, 4, 128, 128), dtype=np.float64)
    assert expected.size == 65_536
    actual = expected.copy()
    actual[0, 2, 17, 101] += 1e4

    # rms of the difference 1e4/256 = 39, against a peak of 4 to 5; from the candidate's own peak of
    # 1e4 it would be a flattering 48 dB
    assert psnr_db(actual, expected) == pytest.approx(
        20 * math.log10(np.abs(expected).max() / (1e4 / 256))
    )
    assert psnr_db(actual, expected) < 0
    assert rel_l2(actual, expected) > 10
    assert p99_abs(actual, expected) == 0
    assert max_abs(actual, expected).index == (0, 2, 17, 101)
    assert max_abs(actual, expected).value == pytest.approx(1e4)


def test_a_tensor_without_axes_is_one_element() -> None:
    actual, expected = np.array(3.0), np.array(-2.0)

    assert rel_l2(actual, expected) == 2.5
    assert cosine(actual, expected) == -1
    assert psnr_db(actual, expected) == pytest.approx(20 * math.log10(2 / 5))
    assert bias(actual, expected) == 2.5
    assert max_abs(actual, expected) == Peak(value=5.0, index=())
    assert p99_abs(actual, expected) == 5


def test_max_abs_finds_negative_differences_and_the_first_of_equals() -> None:
    expected = np.zeros((3, 3))
    actual = np.zeros((3, 3))
    actual[0, 1], actual[1, 2], actual[2, 0] = 1.0, -5.0, 5.0

    assert max_abs(actual, expected) == Peak(value=5.0, index=(1, 2))


# --- PSNR as others got it wrong -----------------------------------------------------------------


def test_psnr_of_a_tensor_is_that_of_its_elements_in_a_row() -> None:
    """Regression against coremltools, whose PSNR divides by the length of the first axis."""
    expected = gaussian(1, 4, 64, 64)
    actual = expected + np.float32(1e-3) * gaussian(1, 4, 64, 64, seed=1)

    assert psnr_db(actual, expected) == pytest.approx(psnr_db(actual.ravel(), expected.ravel()))
    assert psnr_db(actual, expected) > 60


def test_psnr_of_a_negative_reference_uses_its_magnitude() -> None:
    """Regression against Polygraphy, whose peak is a signed maximum."""
    expected = -1 - np.abs(gaussian(4, 16))
    actual = expected + np.float32(0.01)

    assert psnr_db(actual, expected) == pytest.approx(psnr_db(-actual, -expected))
    assert psnr_db(actual, expected) > 40


# --- zeros ---------------------------------------------------------------------------------------


def test_zero_reference_and_zero_candidate() -> None:
    zeros = np.zeros((2, 3), dtype=np.float32)

    assert rel_l2(zeros, zeros) == 0
    assert math.isnan(cosine(zeros, zeros))
    assert math.isnan(psnr_db(zeros, zeros))
    assert bias(zeros, zeros) == 0
    assert max_abs(zeros, zeros) == Peak(value=0.0, index=(0, 0))
    assert rms(zeros) == 0


def test_zero_reference_and_other_candidate() -> None:
    zeros = np.zeros((2, 2), dtype=np.float32)
    balanced = np.array([[1, -1], [0, 0]], dtype=np.float32)

    assert rel_l2(balanced, zeros) == math.inf
    assert math.isnan(cosine(balanced, zeros))
    assert math.isnan(psnr_db(balanced, zeros))
    assert bias(balanced, zeros) == 0
    assert bias(balanced + 1, zeros) == math.inf
    assert bias(balanced - 1, zeros) == -math.inf


def test_zero_candidate_misses_everything() -> None:
    expected = gaussian(2, 8)
    zeros = np.zeros_like(expected)

    assert rel_l2(zeros, expected) == pytest.approx(1)
    assert math.isnan(cosine(zeros, expected))


# --- not finite ----------------------------------------------------------------------------------

NOT_FINITE = [math.nan, math.inf, -math.inf]


@every_metric
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("side", ["actual", "expected", "both"])
@pytest.mark.parametrize(("fill", "dtype"), [(0.0, "float32"), (1.0, "float16")])
def test_one_element_that_is_not_finite_makes_the_metric_nan(
    metric: Metric, value: float, side: str, fill: float, dtype: str
) -> None:
    clean = np.full((3, 4), fill, dtype=dtype)
    broken = clean.copy()
    broken[1, 2] = value
    actual = clean if side == "expected" else broken
    expected = clean if side == "actual" else broken

    assert math.isnan(metric(actual, expected))
    assert max_abs(actual, expected).index == (1, 2)


@every_metric
def test_infinities_of_opposite_sign_are_nan(metric: Metric) -> None:
    assert math.isnan(metric(np.array([math.inf, 1.0]), np.array([-math.inf, 1.0])))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_rms_of_a_tensor_that_is_not_finite_is_nan(value: float) -> None:
    assert math.isnan(rms(np.array([1.0, value])))


def test_the_first_element_that_is_not_finite_is_pointed_at_not_the_greatest() -> None:
    expected = np.zeros((2, 3))
    actual = np.array([[1e9, 0, 0], [math.nan, math.inf, 0]])

    assert max_abs(actual, expected).index == (1, 0)


@every_metric
def test_a_difference_beyond_float64_is_nan(metric: Metric) -> None:
    assert math.isnan(metric(np.array([1.7e308]), np.array([-1.7e308])))


# --- arithmetic ----------------------------------------------------------------------------------


def test_uint8_does_not_wrap() -> None:
    black, almost_black = np.array([0, 10], dtype=np.uint8), np.array([1, 10], dtype=np.uint8)

    assert max_abs(black, almost_black) == Peak(value=1.0, index=(0,))
    assert max_abs(almost_black, black) == Peak(value=1.0, index=(0,))
    assert bias(black, almost_black) == pytest.approx(-0.5 / math.sqrt(101 / 2))
    assert rel_l2(black, almost_black) == pytest.approx(1 / math.sqrt(101))


def test_int8_does_not_overflow() -> None:
    actual, expected = np.array([127], dtype=np.int8), np.array([-128], dtype=np.int8)

    assert max_abs(actual, expected).value == 255
    assert rel_l2(actual, expected) == pytest.approx(255 / 128)
    # |-128| is -128 in int8
    assert rms(expected) == 128


def test_float16_does_not_overflow() -> None:
    actual, expected = np.array([6e4], dtype=np.float16), np.array([-6e4], dtype=np.float16)
    value = float(actual[0])

    assert max_abs(actual, expected).value == 2 * value
    assert rel_l2(actual, expected) == pytest.approx(2)
    assert psnr_db(actual, expected) == pytest.approx(-20 * math.log10(2))
    assert cosine(actual, expected) == pytest.approx(-1)
    assert bias(actual, expected) == pytest.approx(2)
    assert p99_abs(actual, expected) == 2 * value
    assert rms(actual) == pytest.approx(value)


def test_sums_are_not_taken_in_float16_or_float32() -> None:
    # 2**20 equal squares: float16 sums stop at 2048, float32 sums lose digits
    expected = np.full(2**20, 0.1, dtype=np.float16)
    actual = np.full(2**20, 0.2, dtype=np.float16)
    ratio = float(actual[0]) / float(expected[0])

    assert rel_l2(actual, expected) == pytest.approx(ratio - 1, rel=1e-12)
    assert rms(expected) == pytest.approx(float(expected[0]), rel=1e-12)
    assert cosine(actual, expected) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-200, 1e200, 1e300])
def test_squares_neither_vanish_nor_overflow(scale: float) -> None:
    expected = np.array([3.0, -4.0]) * scale
    actual = np.array([3.0, 0.0]) * scale
    digits = 1e-3 if scale < 1e-308 else 1e-12  # subnormal numbers have few

    assert rel_l2(actual, expected) == pytest.approx(4 / 5, rel=digits)
    assert cosine(actual, expected) == pytest.approx(3 / 5, rel=digits)
    assert psnr_db(actual, expected) == pytest.approx(20 * math.log10(math.sqrt(2)), rel=digits)
    assert bias(actual, expected) == pytest.approx(2 / (5 / math.sqrt(2)), rel=digits)
    assert rms(expected) == pytest.approx(5 / math.sqrt(2) * scale, rel=digits)


def test_a_great_reference_does_not_hide_a_wrong_candidate() -> None:
    # the norm of the reference overflows although each element is finite: x / inf would be 0
    expected = np.full(16, 1.5e308)

    assert rel_l2(np.zeros(16), expected) == pytest.approx(1)


# --- what cannot be compared ---------------------------------------------------------------------


@every_metric
@pytest.mark.parametrize(
    ("actual_shape", "expected_shape"),
    [
        ((1, 4), (4, 4)),
        ((4, 4), (1, 4)),
        ((), (4, 4)),
        ((4, 4), ()),
        ((1,), ()),
        ((4,), (4, 1)),
        ((1, 4, 2, 2), (4, 2, 2)),
        ((2, 3), (3, 2)),
        ((5,), (6,)),
        ((0, 4), (4, 4)),
    ],
)
def test_shapes_are_never_broadcast(
    metric: Metric, actual_shape: tuple[int, ...], expected_shape: tuple[int, ...]
) -> None:
    with pytest.raises(TensorMismatchError, match="Nothing is broadcast"):
        metric(np.ones(actual_shape), np.ones(expected_shape))


@every_metric
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_an_empty_tensor_cannot_be_compared(metric: Metric, shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorMismatchError, match="empty tensor"):
        metric(np.ones(shape), np.ones(shape))


@every_metric
@pytest.mark.parametrize("dtype", ["bool", "complex64", "complex128", "U3", "O", "datetime64[s]"])
def test_dtypes_without_a_distance_are_refused(metric: Metric, dtype: str) -> None:
    tensor = np.ones(2, dtype=np.int64).astype(dtype)
    with pytest.raises(TensorMismatchError, match="integers or floats"):
        metric(tensor, tensor)


@every_metric
@pytest.mark.parametrize("others", [("uint8", "float32"), ("float16", "int64"), ("uint8", "int8")])
def test_kinds_of_dtype_are_not_mixed(metric: Metric, others: tuple[str, str]) -> None:
    actual, expected = (np.ones(2, dtype=dtype) for dtype in others)
    with pytest.raises(TensorMismatchError, match="kinds may not"):
        metric(actual, expected)


@pytest.mark.parametrize("actual_dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("expected_dtype", ["float16", "float32", "float64"])
def test_widths_of_float_may_differ(actual_dtype: str, expected_dtype: str) -> None:
    actual = np.array([1.0, -2.0], dtype=actual_dtype)
    expected = np.array([1.0, -2.0], dtype=expected_dtype)

    assert rel_l2(actual, expected) == 0


def test_rms_refuses_what_has_none() -> None:
    with pytest.raises(TensorMismatchError, match="empty tensor"):
        rms(np.ones(0))
    with pytest.raises(TensorMismatchError, match="integers or floats"):
        rms(np.array([True]))


def test_the_message_says_where_what_and_why() -> None:
    actual, expected = np.ones((1, 4), dtype=np.float32), np.ones((4, 4), dtype=np.float32)
    with pytest.raises(TensorMismatchError) as caught:
        check_comparable(actual, expected, component="unet", tensor="noise_pred")

    assert str(caught.value) == (
        "unet 'noise_pred': got float32 [1, 4], want float32 [4, 4]. Nothing is broadcast."
    )
    assert (caught.value.component, caught.value.tensor) == ("unet", "noise_pred")


def test_inputs_are_left_as_they_were() -> None:
    actual, expected = gaussian(3, 4), gaussian(3, 4, seed=1)
    for tensor in (actual, expected):
        tensor.flags.writeable = False  # writing would raise

    for metric in METRICS:
        metric(actual, expected)


# --- laws ----------------------------------------------------------------------------------------


@quick
@given(tensor_groups())
def test_metrics_agree_with_their_formulas(pair: tuple[Array, Array]) -> None:
    actual, expected = pair
    difference = actual - expected
    assume(difference.any() and expected.any())
    unit = math.sqrt(np.mean(expected**2))
    error = math.sqrt(np.mean(difference**2))

    assert rel_l2(actual, expected) == pytest.approx(
        np.linalg.norm(difference.ravel()) / np.linalg.norm(expected.ravel()), rel=1e-9
    )
    assert psnr_db(actual, expected) == pytest.approx(
        20 * math.log10(np.abs(expected).max() / error), rel=1e-9, abs=1e-9
    )
    assert rms(expected) == pytest.approx(unit, rel=1e-9)
    assert bias(actual, expected) == pytest.approx(
        np.mean(difference) / unit, rel=1e-9, abs=1e-12 * error / unit
    )
    assert max_abs(actual, expected).value == np.abs(difference).max()
    assert np.abs(difference)[max_abs(actual, expected).index] == np.abs(difference).max()


@quick
@given(tensor_groups())
def test_cosine_agrees_with_its_formula(pair: tuple[Array, Array]) -> None:
    actual, expected = pair
    assume(actual.any() and expected.any())
    naive = np.vdot(actual, expected) / (
        np.linalg.norm(actual.ravel()) * np.linalg.norm(expected.ravel())
    )

    assert cosine(actual, expected) == pytest.approx(naive, abs=1e-9)
    assert -1 <= cosine(actual, expected) <= 1
    assert cosine(actual, actual) == pytest.approx(1, abs=1e-12)


@quick
@given(tensor_groups(), POWERS_OF_TWO)
def test_relative_metrics_ignore_a_common_scale(pair: tuple[Array, Array], scale: float) -> None:
    actual, expected = pair

    for metric in (rel_l2, cosine, psnr_db, bias):
        assert metric(actual * scale, expected * scale) == pytest.approx(
            metric(actual, expected), rel=1e-9, abs=1e-9, nan_ok=True
        )


@quick
@given(tensor_groups(), POWERS_OF_TWO)
def test_absolute_metrics_follow_a_common_scale(pair: tuple[Array, Array], scale: float) -> None:
    actual, expected = pair

    for metric in (max_abs_value, p99_abs):
        assert metric(actual * scale, expected * scale) == pytest.approx(
            scale * metric(actual, expected), rel=1e-12
        )


@quick
@given(tensor_groups())
def test_what_is_symmetric_and_what_is_not(pair: tuple[Array, Array]) -> None:
    first, second = pair

    assert cosine(first, second) == pytest.approx(cosine(second, first), nan_ok=True)
    assert max_abs(first, second) == max_abs(second, first)
    assert p99_abs(first, second) == p99_abs(second, first)
    if first.any() and second.any():
        # the same distance, each in the other's unit
        assert rel_l2(first, second) * rms(second) == pytest.approx(
            rel_l2(second, first) * rms(first), rel=1e-9
        )
        assert bias(first, second) * rms(second) == pytest.approx(
            -bias(second, first) * rms(first), rel=1e-9
        )


@quick
@given(tensor_groups())
def test_a_common_sign_only_turns_the_bias(pair: tuple[Array, Array]) -> None:
    actual, expected = pair

    assert bias(-actual, -expected) == -bias(actual, expected)
    for metric in (rel_l2, cosine, psnr_db, max_abs_value, p99_abs):
        assert metric(-actual, -expected) == pytest.approx(metric(actual, expected), nan_ok=True)


@quick
@given(tensor_groups(count=3))
def test_rel_l2_keeps_the_triangle_inequality(triple: tuple[Array, Array, Array]) -> None:
    first, second, third = triple
    assume(second.any() and third.any())
    # in the unit of the third: ‖first - third‖ ≤ ‖first - second‖ + ‖second - third‖
    detour = rel_l2(first, second) * rms(second) / rms(third) + rel_l2(second, third)

    assert rel_l2(first, third) <= detour * (1 + 1e-9)


@quick
@given(tensor_groups(), st.randoms(use_true_random=False))
def test_the_order_of_elements_does_not_matter(pair: tuple[Array, Array], random: Random) -> None:
    actual, expected = (tensor.ravel() for tensor in pair)
    order = list(range(actual.size))
    random.shuffle(order)

    for metric in METRICS:
        assert metric(actual[order], expected[order]) == pytest.approx(
            metric(actual, expected), rel=1e-9, abs=1e-9, nan_ok=True
        )


@quick
@given(tensor_groups())
def test_the_shape_and_the_layout_in_memory_do_not_matter(pair: tuple[Array, Array]) -> None:
    actual, expected = pair

    for metric in METRICS:
        wanted = pytest.approx(metric(actual, expected), rel=1e-9, abs=1e-9, nan_ok=True)
        assert metric(actual.ravel(), expected.ravel()) == wanted
        assert metric(np.asfortranarray(actual), np.ascontiguousarray(expected)) == wanted


@quick
@given(tensor_groups(), st.data())
def test_any_one_nan_makes_every_metric_nan(pair: tuple[Array, Array], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, pair[0].size - 1))
    broken = pair[data.draw(st.sampled_from([0, 1]))]
    broken.flat[position] = data.draw(st.sampled_from(NOT_FINITE))

    for metric in METRICS:
        assert math.isnan(metric(*pair))
    assert max_abs(*pair).index == np.unravel_index(position, broken.shape)


@quick
@given(
    hnp.array_shapes(max_dims=3, max_side=4).flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float64, shape, elements=st.floats())] * 2)
    )
)
@example((np.array([5e-324, 0.0, 0.0, 0.0]), np.zeros(4)))
@example((np.array([1.7e308, 1e300]), np.array([1e308, 5e-324])))
def test_no_tensor_at_all_is_beyond_the_judge(pair: tuple[Array, Array]) -> None:
    """Any bit pattern: no exception, no warning, and rel_l2 is 0 only for what is all but equal."""
    actual, expected = pair
    for metric in METRICS:
        metric(actual, expected)

    if rel_l2(actual, expected) == 0:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-300 * rms(expected))
    if psnr_db(actual, expected) == math.inf:
        np.testing.assert_array_equal(actual, expected)


@quick
@given(SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape)] * 2)))
def test_uint8_gives_the_numbers_of_the_same_float64(pair: tuple[Array, Array]) -> None:
    actual, expected = pair
    for metric in METRICS:
        assert metric(actual, expected) == pytest.approx(
            metric(actual.astype(np.float64), expected.astype(np.float64)), nan_ok=True
        )


@quick
@given(SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.uint16, shape, elements=BITS)] * 2)))
def test_float16_gives_the_numbers_of_the_same_float64(pair: tuple[Array, Array]) -> None:
    actual, expected = (bits.view(np.float16) for bits in pair)
    for metric in METRICS:
        assert metric(actual, expected) == pytest.approx(
            metric(actual.astype(np.float64), expected.astype(np.float64)), nan_ok=True
        )
