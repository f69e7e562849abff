"""Operators that pick elements by index.

Definitions: defs iOS15/scatter_gather.py, iOS16 (batch_dims) and iOS17 (which counts a negative
index as outside). What an index outside its axis gives is left open there, so it is refused here.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch

_NO_NEGATIVE_INDICES = 7  # opset, iOS17


def gather(arguments: Arguments) -> "torch.Tensor":
    """Slices of x along an axis, one for each index; batch axes go together."""
    import torch

    x = arguments.tensor("x")
    axis = arguments.axis("axis", x.ndim, 0)
    batch_dims = arguments.integer("batch_dims", 0)
    indices = _checked(arguments, arguments.tensor("indices"), x.shape[axis])
    if batch_dims == 0:
        flat = x.index_select(axis, indices.reshape(-1))
        return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    rows = zip(x.flatten(0, batch_dims - 1), indices.flatten(0, batch_dims - 1), strict=True)
    parts = [row.index_select(axis - batch_dims, index.reshape(-1)) for row, index in rows]
    return torch.stack(parts).reshape(
        *x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]
    )


def gather_along_axis(arguments: Arguments) -> "torch.Tensor":
    """For each index the element of x at that place of the axis, elsewhere at its own place."""
    x = arguments.tensor("x")
    axis = arguments.axis("axis", x.ndim, 0)
    return x.gather(axis, _checked(arguments, arguments.tensor("indices"), x.shape[axis]))


def gather_nd(arguments: Arguments) -> "torch.Tensor":
    """Slices of x, each at a tuple of indices: the last axis of `indices`; batch axes together."""
    import torch

    x, indices = arguments.tensor("x"), arguments.tensor("indices")
    batch_dims = arguments.integer("batch_dims", 0)
    places = [
        _checked(arguments, part, x.shape[batch_dims + position])
        for position, part in enumerate(indices.unbind(-1))
    ]
    between = indices.ndim - 1 - batch_dims
    batch = [
        torch.arange(length).reshape(-1, *(1,) * (batch_dims - 1 - axis + between))
        for axis, length in enumerate(x.shape[:batch_dims])
    ]
    return x[(*batch, *places)]


def _checked(arguments: Arguments, indices: "torch.Tensor", length: int) -> "torch.Tensor":
    """Indices counted from the front, all inside an axis."""
    lowest = 0 if arguments.opset >= _NO_NEGATIVE_INDICES else -length
    if indices.numel():
        smallest, largest = int(indices.min()), int(indices.max())
        if smallest < lowest or largest >= length:
            raise arguments.refusal(
                f"indices from {smallest} to {largest}", f"{lowest} to {length - 1}"
            )
    return indices.long().remainder(length)


OPERATORS: Mapping[str, Operator] = {
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
}
