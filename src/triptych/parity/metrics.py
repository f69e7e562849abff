"""How far one tensor is from another: pure functions from two arrays to a number.

Every metric keeps the same promises, so that no caller has to:

- the candidate comes first, the reference second: `metric(actual, expected)`;
- both are float64 before anything is subtracted, so uint8 cannot wrap and float16 cannot overflow;
- nothing is broadcast: arrays of other shapes, of other kinds of dtype, or without elements are
  refused with `TensorMismatchError`;
- if any element is NaN or infinite, or a difference leaves float64's range, the result is NaN.
  NaN is neither below nor above a threshold, so it must be compared as `metric <= limit`, which is
  then false;
- squares are taken of values scaled to at most 1, so that they neither overflow nor vanish.

Integers are exact to 2**53. Thresholds and verdicts are not here.

Source:
    The promises are the ones whose absence lets wrong exports pass elsewhere. torch.onnx's verify
    accepts NaN and subtracts uint8 as uint8, coremltools' PSNR divides by the length of the first
    axis, Polygraphy's takes the signed maximum of one side as its peak.
"""

import math
from dataclasses import dataclass

import numpy as np

from triptych.errors import TensorMismatchError
from triptych.tensors import describe
from triptych.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The greatest absolute difference and where it is.

    Attributes:
        value: max|actual - expected|, in the tensors' own unit; NaN when not finite.
        index: its position, one int an axis, the first in C order if there are several. When
            `value` is NaN, the position of the first difference that is not finite.
    """

    value: float
    index: tuple[int, ...]


def check_comparable(actual: Array, expected: Array, *, component: str, tensor: str) -> None:
    """Refuse two arrays between which no distance is defined.

    Widths may differ (float16 against float32), kinds may not (uint8 against float32): pixels from
    0 to 255 and floats from 0 to 1 have no meaningful distance.

    Args:
        actual: the candidate.
        expected: the reference.
        component: where, for the message.
        tensor: the tensor's name, for the message.

    Raises:
        TensorMismatchError: the shapes differ, the kinds of dtype differ, a dtype is not an integer
            or a float of at most 64 bits, or there are no elements.
    """
    if actual.shape != expected.shape:
        hint = "Nothing is broadcast."
        raise _mismatch(actual, expected, component=component, tensor=tensor, hint=hint)
    for array in (actual, expected):
        _check_measurable(array, component=component, tensor=tensor)
    if actual.dtype.kind != expected.dtype.kind:
        hint = "Widths may differ, kinds may not; convert one side deliberately."
        raise _mismatch(actual, expected, component=component, tensor=tensor, hint=hint)


def rel_l2(actual: Array, expected: Array) -> float:
    """Relative L2 distance; lower is closer, 0 when equal.

    ‖actual - expected‖ / ‖expected‖, over all elements. Not symmetric: the unit is the reference's
    norm. 0 when both are all zeros, +inf when only `expected` is, NaN when anything is not finite.

    Raises:
        TensorMismatchError: the arrays are not comparable. Nothing is broadcast.
    """
    error_peak, error_rms = _peak_and_unit_rms(_difference(actual, expected, metric="rel_l2"))
    peak, unit_rms = _peak_and_unit_rms(_as_float64(expected))
    if math.isnan(error_peak):
        return math.nan
    if error_peak == 0:
        return 0.0
    if peak == 0:
        return math.inf
    return (error_peak / peak) * (error_rms / unit_rms)


def cosine(actual: Array, expected: Array) -> float:
    """Cosine similarity, -1 to 1; higher is closer, 1 when one is a positive multiple of the other.

    actual·expected / (‖actual‖·‖expected‖), over all elements. Blind to scale: report it, never
    judge by it alone. Undefined, hence NaN, when either is all zeros or anything is not finite.

    Raises:
        TensorMismatchError: the arrays are not comparable. Nothing is broadcast.
    """
    difference = _difference(actual, expected, metric="cosine")
    actual_peak, actual_rms = _peak_and_unit_rms(_as_float64(actual))
    expected_peak, expected_rms = _peak_and_unit_rms(_as_float64(expected))
    if not _all_finite(difference) or actual_peak == 0 or expected_peak == 0:
        return math.nan
    product = (_as_float64(actual) / actual_peak) * (_as_float64(expected) / expected_peak)
    similarity = float(np.mean(product)) / (actual_rms * expected_rms)
    return max(-1.0, min(1.0, similarity))


def psnr_db(actual: Array, expected: Array) -> float:
    """Peak signal-to-noise ratio in dB; higher is closer, +inf when equal.

    20·log10(max|expected| / rms(actual - expected)), over all elements. The peak is the
    *reference's*: taken from the candidate, an outlier raises its own score. Undefined, hence NaN,
    when `expected` is all zeros (even if `actual` is too) or anything is not finite; a NaN never
    passes a threshold.

    Raises:
        TensorMismatchError: the arrays are not comparable. Nothing is broadcast.
    """
    error_peak, error_rms = _peak_and_unit_rms(_difference(actual, expected, metric="psnr_db"))
    peak, _ = _peak_and_unit_rms(_as_float64(expected))
    if math.isnan(error_peak) or peak == 0:
        return math.nan
    if error_peak == 0:
        return math.inf
    return 20 * (math.log10(peak) - math.log10(error_peak) - math.log10(error_rms))


def bias(actual: Array, expected: Array) -> float:
    """Mean difference in units of the reference's rms; 0 is unbiased, the sign is the candidate's.

    mean(actual - expected) / rms(expected), over all elements. Rounding scatters around 0; a wrong
    constant, a wrong zero point or a rounded timestep does not. 0 when the mean difference is 0,
    ±inf when it is not and `expected` is all zeros, NaN when anything is not finite.

    Raises:
        TensorMismatchError: the arrays are not comparable. Nothing is broadcast.
    """
    difference = _difference(actual, expected, metric="bias")
    error_peak, _ = _peak_and_unit_rms(difference)
    peak, unit_rms = _peak_and_unit_rms(_as_float64(expected))
    if math.isnan(error_peak):
        return math.nan
    if error_peak == 0:
        return 0.0
    offset = float(np.mean(difference / error_peak))
    if offset == 0:
        return 0.0
    if peak == 0:
        return math.copysign(math.inf, offset)
    return (error_peak / peak) * (offset / unit_rms)


def max_abs(actual: Array, expected: Array) -> Peak:
    """Greatest absolute difference and its index; lower is closer, 0 when equal.

    max|actual - expected|, in the tensors' own unit. When anything is not finite the value is NaN
    and the index that of the first such difference.

    Raises:
        TensorMismatchError: the arrays are not comparable. Nothing is broadcast.
    """
    distance = np.abs(_difference(actual, expected, metric="max_abs"))
    finite = np.isfinite(distance)
    # argmax gives the first maximum; of "not finite", the first True
    position = int(np.argmax(distance) if finite.all() else np.argmax(~finite))
    index = tuple(int(axis) for axis in np.unravel_index(position, distance.shape))
    value = float(distance[index]) if finite.all() else math.nan
    return Peak(value=value, index=index)


def p99_abs(actual: Array, expected: Array) -> float:
    """99th percentile of the absolute difference; lower is closer, 0 when 99 % are equal.

    percentile(|actual - expected|, 99), linear between neighbours, in the tensors' own unit. Beside
    `max_abs` it tells one outlier from a shift of everything. NaN when anything is not finite.

    Raises:
        TensorMismatchError: the arrays are not comparable. Nothing is broadcast.
    """
    difference = _difference(actual, expected, metric="p99_abs")
    if not _all_finite(difference):
        return math.nan
    return float(np.percentile(np.abs(difference), 99))


def rms(values: Array) -> float:
    """Root mean square of one tensor, in its own unit; 0 when all zeros.

    √mean(values²), over all elements. NaN when anything is not finite. The only metric of one
    tensor: it gives the others their unit.

    Raises:
        TensorMismatchError: the dtype is not numeric or there are no elements.
    """
    _check_measurable(values, component="rms", tensor="values")
    peak, unit_rms = _peak_and_unit_rms(_as_float64(values))
    return peak * unit_rms


def _mismatch(
    actual: Array, expected: Array, *, component: str, tensor: str, hint: str
) -> TensorMismatchError:
    return TensorMismatchError(
        component=component,
        tensor=tensor,
        actual=describe(actual),
        expected=describe(expected),
        hint=hint,
    )


def _check_measurable(array: Array, *, component: str, tensor: str) -> None:
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > np.dtype(np.float64).itemsize:
        raise TensorMismatchError(
            component=component,
            tensor=tensor,
            actual=describe(array),
            expected="integers or floats of at most 64 bits",
        )
    if array.size == 0:
        raise TensorMismatchError(
            component=component,
            tensor=tensor,
            actual=describe(array),
            expected="at least one element",
            hint="An empty tensor cannot be compared: it would equal anything.",
        )


def _as_float64(array: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN; it stays a NaN
        return np.asarray(array, dtype=np.float64)


def _difference(actual: Array, expected: Array, *, metric: str) -> Array:
    """Actual - expected in float64; not finite wherever either is not, also for inf - inf."""
    check_comparable(actual, expected, component=metric, tensor="actual")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(_as_float64(actual) - _as_float64(expected))


def _all_finite(values: Array) -> bool:
    return bool(np.isfinite(values).all())


def _peak_and_unit_rms(values: Array) -> tuple[float, float]:
    """max|values| and rms(values / max|values|); their product is the rms.

    Kept apart so that ratios can be taken of each: a square of 1e-200 is 0, and a wrong tensor
    must not become equal to its reference by vanishing. (0, 0) when all zeros, (NaN, NaN) when
    anything is not finite.
    """
    if not _all_finite(values):
        return math.nan, math.nan
    peak = float(np.max(np.abs(values)))
    if peak == 0:
        return 0.0, 0.0
    return peak, math.sqrt(float(np.mean(np.square(values / peak))))
