"""Operators that make tensors: filled ones, sequences, bands, running sums.

Definitions: defs iOS15/tensor_operation.py, iOS16/tensor_operation.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch


def band_part(arguments: Arguments) -> "torch.Tensor":
    """Zero outside a band around the diagonal of the last two axes; negative is unlimited."""
    x = arguments.tensor("x")
    lower, upper = arguments.integer("lower", -1), arguments.integer("upper", -1)
    if lower >= 0:
        x = x.triu(-lower)
    return x.tril(upper) if upper >= 0 else x


def cumsum(arguments: Arguments) -> "torch.Tensor":
    """Running sums along an axis, from either end, with or without the element itself."""
    x = arguments.tensor("x")
    axis = arguments.axis("axis", x.ndim, 0)
    backwards = arguments.flag("reverse", default=False)
    along = x.flip(axis) if backwards else x
    sums = along.cumsum(axis, dtype=x.dtype)
    if arguments.flag("exclusive", default=False):
        sums = sums.roll(1, axis).index_fill(axis, sums.new_zeros(1).long(), 0)
    return sums.flip(axis) if backwards else sums


def fill(arguments: Arguments) -> "torch.Tensor":
    """One value in a shape."""
    return _value(arguments).expand(arguments.integers("shape"))


def fill_like(arguments: Arguments) -> "torch.Tensor":
    """One value in the shape of a tensor."""
    return _value(arguments).expand(arguments.tensor("ref_tensor").shape)


def range_1d(arguments: Arguments) -> "torch.Tensor":
    """From start to before end, in steps."""
    import torch

    start, end, step = (arguments.tensor(name) for name in ("start", "end", "step"))
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _value(arguments: Arguments) -> "torch.Tensor":
    import torch

    value = arguments.optional_tensor("value")
    return torch.zeros(()) if value is None else value


OPERATORS: Mapping[str, Operator] = {
    "band_part": band_part,
    "cumsum": cumsum,
    "fill": fill,
    "fill_like": fill_like,
    "range_1d": range_1d,
}
