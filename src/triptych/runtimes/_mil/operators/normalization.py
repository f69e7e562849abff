"""Normalisation.

Definitions: defs iOS15/normalization.py, iOS17/normalization.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch

_EPSILON = 1e-5


def batch_norm(arguments: Arguments) -> "torch.Tensor":
    """(x - mean) / √(variance + epsilon) * gamma + beta, with stored numbers for each channel."""
    x = arguments.tensor("x")
    mean, variance = (_along(arguments.tensor(name), x, [1]) for name in ("mean", "variance"))
    deviation = (variance + arguments.number("epsilon", _EPSILON)).sqrt()
    return _scaled(arguments, (x - mean) / deviation, [1])


def instance_norm(arguments: Arguments) -> "torch.Tensor":
    """Each channel of each example to mean 0 and variance 1, then gamma and beta a channel."""
    x = arguments.tensor("x")
    return _scaled(arguments, _normalized(arguments, x, list(range(2, x.ndim))), [1])


def layer_norm(arguments: Arguments) -> "torch.Tensor":
    """Mean 0 and variance 1 over axes, by default all; then gamma and beta, shaped as those."""
    x = arguments.tensor("x")
    axes = arguments.axes("axes", x.ndim)
    return _scaled(arguments, _normalized(arguments, x, axes), axes)


def _normalized(arguments: Arguments, x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    import torch

    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance + arguments.number("epsilon", _EPSILON)).sqrt()


def _scaled(arguments: Arguments, x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    gamma, beta = arguments.optional_tensor("gamma"), arguments.optional_tensor("beta")
    if gamma is not None:
        x = x * _along(gamma, x, axes)
    return x if beta is None else x + _along(beta, x, axes)


def _along(numbers: "torch.Tensor", x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    """Numbers for the elements of some axes, shaped to be broadcast over the others."""
    return numbers.reshape([x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)])


OPERATORS: Mapping[str, Operator] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
}
