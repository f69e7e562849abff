"""Operators that cut a part out of a tensor.

Definitions: defs iOS15/tensor_transformation.py; _utils.py, solve_slice_by_index_slice.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch


def slice_by_index(arguments: Arguments) -> "torch.Tensor":
    """x[begin:end:stride] on each axis, with Python's meaning of negative numbers.

    A masked begin or end reaches to that side's edge. A squeezed axis keeps only its element at
    begin, and goes.
    """
    x = arguments.tensor("x")
    rank = x.ndim
    begins, ends = arguments.integers("begin"), arguments.integers("end")
    strides = arguments.integers("stride", [1] * rank)
    open_begins = arguments.flags("begin_mask", [False] * rank)
    open_ends = arguments.flags("end_mask", [False] * rank)
    squeezed = arguments.flags("squeeze_mask", [False] * rank)
    for axis in reversed(range(rank)):
        length = x.shape[axis]
        begin = None if open_begins[axis] else begins[axis]
        if squeezed[axis]:
            place = begin or 0
            if not -length <= place < length:
                raise arguments.refusal(f"index {place} on an axis of {length}", "one inside")
            x = x.select(axis, place)
        else:
            end = None if open_ends[axis] else ends[axis]
            x = _cut(x, axis, slice(begin, end, strides[axis]))
    return x


def slice_by_size(arguments: Arguments) -> "torch.Tensor":
    """So many elements on each axis from begin on; -1 for all that are left."""
    x = arguments.tensor("x")
    begins, sizes = arguments.integers("begin"), arguments.integers("size")
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        length = x.shape[axis]
        first = begin + length if begin < 0 else begin
        count = length - first if size == -1 else size
        if not 0 <= first <= first + count <= length:
            raise arguments.refusal(
                f"{size} elements from {begin} on an axis of {length}", "a part inside"
            )
        x = x.narrow(axis, first, count)
    return x


def _cut(x: "torch.Tensor", axis: int, part: slice) -> "torch.Tensor":
    """One axis cut; torch has no steps backwards."""
    import torch

    places = range(*part.indices(x.shape[axis]))
    if places.step == 1:
        return x.narrow(axis, places.start, len(places))
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64))


OPERATORS: Mapping[str, Operator] = {
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
}
