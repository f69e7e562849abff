"""Operators that move elements without computing: shapes, joins, repeats, padding.

Definitions: defs iOS15/tensor_transformation.py, tensor_operation.py and their successors.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch

_RIGHT_ALIGNED_ZEROS = 7  # opset, iOS17


def concat(arguments: Arguments) -> "torch.Tensor":
    """Tensors joined along an axis, one after the other or element by element in turn."""
    import torch

    values = [value.reshape(value.shape or (1,)) for value in arguments.tensors("values")]
    axis = arguments.axis("axis", values[0].ndim)
    if arguments.flag("interleave", default=False):
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


def expand_dims(arguments: Arguments) -> "torch.Tensor":
    """With axes of length 1 where the result is to have them, in whatever order they are listed."""
    x = arguments.tensor("x")
    for axis in arguments.axes("axes", x.ndim + len(arguments.integers("axes"))):
        x = x.unsqueeze(axis)
    return x


def pad(arguments: Arguments) -> "torch.Tensor":
    """With elements before and after each of the last axes: a constant, or taken from inside."""
    import torch

    x, mode = arguments.tensor("x"), arguments.text("mode", "constant")
    amounts = arguments.integers("pad")
    last_axis_first = [
        amount
        for index in reversed(range(0, len(amounts), 2))
        for amount in amounts[index : index + 2]
    ]
    if mode == "constant":
        value = arguments.number("constant_val", 0.0)
        return torch.nn.functional.pad(x, last_axis_first, value=value)
    # torch reflects and replicates only the last axes of a batch; the definition any axis.
    for axis, (before, after) in enumerate(_pairs(amounts), start=x.ndim - len(amounts) // 2):
        x = x.index_select(axis, _inside(mode, x.shape[axis], before, after))
    return x


def reshape(arguments: Arguments) -> "torch.Tensor":
    """To a shape where one -1 is worked out and each 0 keeps a length.

    Up to iOS16 a 0 keeps the length of the same axis counted from the front; from iOS17 on, counted
    from the back, and where there is none it stands for 1.
    """
    x, shape = arguments.tensor("x"), arguments.integers("shape")
    lengths = list(x.shape)
    if arguments.opset >= _RIGHT_ALIGNED_ZEROS:
        lengths = [1] * (len(shape) - len(lengths)) + lengths[max(0, len(lengths) - len(shape)) :]
    elif 0 in shape and len(shape) != x.ndim:
        raise arguments.refusal(f"{shape} for {lengths}", "a 0 only where the ranks are equal")
    wanted = [lengths[axis] if length == 0 else length for axis, length in enumerate(shape)]
    if -1 not in wanted and math.prod(wanted) != x.numel():
        raise arguments.refusal(f"{shape} for {list(x.shape)}", "as many elements")
    return x.reshape(wanted)


def reverse(arguments: Arguments) -> "torch.Tensor":
    """Back to front along axes; by default along all."""
    x = arguments.tensor("x")
    return x.flip(arguments.axes("axes", x.ndim))


def shape(arguments: Arguments) -> "torch.Tensor":
    """The lengths of the axes."""
    import torch

    return torch.tensor(list(arguments.tensor("x").shape), dtype=torch.int32)


def split(arguments: Arguments) -> "list[torch.Tensor]":
    """Parts along an axis: of the sizes given, or so many of one size."""
    x = arguments.tensor("x")
    axis = arguments.axis("axis", x.ndim)
    parts = arguments.integer("num_splits", 1)
    sizes = arguments.integers("split_sizes", [x.shape[axis] // parts] * parts)
    return list(x.split_with_sizes(sizes, axis))


def squeeze(arguments: Arguments) -> "torch.Tensor":
    """Without axes of length 1: those listed, or all. A listed axis of another length stays."""
    x = arguments.tensor("x")
    return x.squeeze(tuple(arguments.axes("axes", x.ndim)))


def stack(arguments: Arguments) -> "torch.Tensor":
    """Tensors of one shape along a new axis."""
    import torch

    return torch.stack(arguments.tensors("values"), arguments.integer("axis"))


def tile(arguments: Arguments) -> "torch.Tensor":
    """Repeated so many times along each axis."""
    return arguments.tensor("x").repeat(arguments.integers("reps"))


def transpose(arguments: Arguments) -> "torch.Tensor":
    """With its axes in another order."""
    return arguments.tensor("x").permute(arguments.integers("perm"))


def _pairs(amounts: list[int]) -> list[tuple[int, int]]:
    return list(zip(amounts[::2], amounts[1::2], strict=True))


def _inside(mode: str, length: int, before: int, after: int) -> "torch.Tensor":
    """For each place of a padded axis, the place inside that it is taken from."""
    import torch

    places = torch.arange(-before, length + after)
    if mode == "replicate":
        return places.clamp(0, length - 1)
    return (length - 1) - ((length - 1) - places.abs()).abs()


OPERATORS: Mapping[str, Operator] = {
    "concat": concat,
    "expand_dims": expand_dims,
    "pad": pad,
    "reshape": reshape,
    "reverse": reverse,
    "shape": shape,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
}
