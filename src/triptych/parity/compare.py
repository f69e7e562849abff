"""One tensor of the candidate against the same tensor of the reference, as a record of numbers.

A comparison only measures. What the limit is, and which class of arithmetic it belongs to, is
decided by whoever calls `passes`.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from triptych.parity import metrics
from triptych.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was measured between two tensors. Every metric is NaN if either is not finite.

    Attributes:
        component: the component whose output this is.
        tensor: the output's name.
        shape: the shape of both.
        size: how many elements each has.
        finite_actual: whether every element of the candidate is finite.
        finite_expected: whether every element of the reference is finite.
        rel_l2: ‖actual - expected‖ / ‖expected‖; +inf for a reference of zeros.
        cosine: cosine similarity; NaN also when either is all zeros.
        psnr_db: decibels, peak max|expected|; +inf when equal, NaN for a reference of zeros.
        max_abs: max|actual - expected|, in the tensor's own unit.
        max_abs_index: where that is; for NaN, where the first difference is not finite.
        p99_abs: 99th percentile of |actual - expected|, in the tensor's own unit.
        rms_expected: rms of the reference, in the tensor's own unit; NaN only by its own elements.
        bias: mean(actual - expected) / rms(expected).
    """

    component: str
    tensor: str
    shape: tuple[int, ...]
    size: int
    finite_actual: bool
    finite_expected: bool
    rel_l2: float
    cosine: float
    psnr_db: float
    max_abs: float
    max_abs_index: tuple[int, ...]
    p99_abs: float
    rms_expected: float
    bias: float


def compare(actual: Array, expected: Array, *, component: str, tensor: str) -> Comparison:
    """Measure how far the candidate is from the reference.

    Never raises because values differ or are not finite; the numbers say so. Formulas and edge
    cases: `triptych.parity.metrics`.

    Args:
        actual: the candidate's tensor.
        expected: the reference's tensor.
        component: the component whose output this is, for the record and for messages.
        tensor: the output's name, for the record and for messages.

    Returns:
        All metrics of the pair.

    Raises:
        TensorMismatchError: the shapes or the kinds of dtype differ, a dtype is not numeric, or
            there are no elements. Nothing is broadcast.
    """
    metrics.check_comparable(actual, expected, component=component, tensor=tensor)
    peak = metrics.max_abs(actual, expected)
    return Comparison(
        component=component,
        tensor=tensor,
        shape=tuple(expected.shape),
        size=int(expected.size),
        finite_actual=bool(np.isfinite(actual).all()),
        finite_expected=bool(np.isfinite(expected).all()),
        rel_l2=metrics.rel_l2(actual, expected),
        cosine=metrics.cosine(actual, expected),
        psnr_db=metrics.psnr_db(actual, expected),
        max_abs=peak.value,
        max_abs_index=peak.index,
        p99_abs=metrics.p99_abs(actual, expected),
        rms_expected=metrics.rms(expected),
        bias=metrics.bias(actual, expected),
    )


def passes(comparison: Comparison, *, rel_l2_limit: float) -> bool:
    """Whether the tensors are finite and close enough: rel_l2 ≤ rel_l2_limit.

    A rel_l2 equal to the limit passes. NaN never does, as rel_l2 or as limit, nor does a pair that
    is NaN or infinite in the same places. A rel_l2 of +inf (a reference of zeros) never passes.
    """
    if not (comparison.finite_actual and comparison.finite_expected):
        return False
    # asked as "is it close", never as "is it far": every question about a NaN is answered no
    return math.isfinite(comparison.rel_l2) and comparison.rel_l2 <= rel_l2_limit


def comparison_record(comparison: Comparison) -> dict[str, object]:
    """The comparison as values that strict JSON can hold, in the order of the fields.

    JSON (RFC 8259) has no NaN and no infinity. They become the strings "nan", "inf" and "-inf",
    which Python's `float` reads back; null would lose which of them it was. Tuples become lists.
    """
    return {name: _json_value(value) for name, value in asdict(comparison).items()}


def _json_value(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    return value
