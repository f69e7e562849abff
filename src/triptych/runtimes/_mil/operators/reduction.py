"""Operators that bring axes down to one number.

Definitions: defs iOS15/reduction.py, iOS17/reduction.py.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch


def _over_axes(reduce: Callable[["torch.Tensor", list[int]], "torch.Tensor"]) -> Operator:
    """An operator from a function that keeps the axes it reduces, with length 1."""

    def apply(arguments: Arguments) -> "torch.Tensor":
        x = arguments.tensor("x")
        axes = arguments.axes("axes", x.ndim)
        reduced = reduce(x, axes) if axes else x
        keep = arguments.flag("keep_dims", default=False)
        return reduced if keep else reduced.squeeze(tuple(axes))

    return apply


def _position(*, largest: bool) -> Operator:
    def apply(arguments: Arguments) -> "torch.Tensor":
        x = arguments.tensor("x")
        axis = arguments.axis("axis", x.ndim, -1)
        keep = arguments.flag("keep_dims", default=False)
        return x.argmax(axis, keepdim=keep) if largest else x.argmin(axis, keepdim=keep)

    return apply


def _mean(x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=True)


def _product(x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    for axis in axes:
        x = x.prod(axis, keepdim=True, dtype=x.dtype)
    return x


def _sum(x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    return x.sum(axes, keepdim=True, dtype=x.dtype)


OPERATORS: Mapping[str, Operator] = {
    "reduce_argmax": _position(largest=True),
    "reduce_argmin": _position(largest=False),
    "reduce_l1_norm": _over_axes(lambda x, axes: _sum(x.abs(), axes)),
    "reduce_l2_norm": _over_axes(lambda x, axes: _sum(x.square(), axes).sqrt()),
    "reduce_log_sum": _over_axes(lambda x, axes: _sum(x, axes).log()),
    "reduce_log_sum_exp": _over_axes(lambda x, axes: x.logsumexp(axes, keepdim=True)),
    "reduce_max": _over_axes(lambda x, axes: x.amax(axes, keepdim=True)),
    "reduce_mean": _over_axes(_mean),
    "reduce_min": _over_axes(lambda x, axes: x.amin(axes, keepdim=True)),
    "reduce_prod": _over_axes(_product),
    "reduce_sum": _over_axes(_sum),
    "reduce_sum_square": _over_axes(lambda x, axes: _sum(x.square(), axes)),
}
