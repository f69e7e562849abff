"""Activation functions.

Definitions: defs iOS15/activation.py and iOS17/activation.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch


def _plain(torch_name: str) -> Operator:
    def apply(arguments: Arguments) -> "torch.Tensor":
        import torch

        function = getattr(torch.nn.functional, torch_name)
        result: torch.Tensor = function(arguments.tensor("x"))
        return result

    return apply


def clamped_relu(arguments: Arguments) -> "torch.Tensor":
    """min(beta, x) from zero upwards, min(beta, alpha * x) below."""
    x = arguments.tensor("x")
    return _leaky(x, arguments.number("alpha")).clamp(max=arguments.number("beta"))


def elu(arguments: Arguments) -> "torch.Tensor":
    """Itself above zero, alpha * (e^x - 1) below."""
    import torch

    return torch.nn.functional.elu(arguments.tensor("x"), arguments.number("alpha"))


def gelu(arguments: Arguments) -> "torch.Tensor":
    """Each element times the Gaussian distribution function there, or by an approximation."""
    import torch

    x = arguments.tensor("x")
    match arguments.text("mode", "EXACT"):
        case "EXACT":
            return torch.nn.functional.gelu(x)
        case "TANH_APPROXIMATION":
            return torch.nn.functional.gelu(x, approximate="tanh")
        case "SIGMOID_APPROXIMATION":
            return x * torch.sigmoid(1.702 * x)
        case mode:
            raise arguments.refusal(f"mode {mode}", "EXACT or one of the two approximations")


def leaky_relu(arguments: Arguments) -> "torch.Tensor":
    """Itself from zero upwards, alpha * x below."""
    return _leaky(arguments.tensor("x"), arguments.number("alpha"))


def linear_activation(arguments: Arguments) -> "torch.Tensor":
    """A straight line: alpha * x + beta."""
    return arguments.tensor("x") * arguments.number("alpha") + arguments.number("beta")


def prelu(arguments: Arguments) -> "torch.Tensor":
    """Itself above zero, the channel's alpha * x below; channels are axis 1."""
    import torch

    return torch.nn.functional.prelu(arguments.tensor("x"), arguments.tensor("alpha"))


def scaled_tanh(arguments: Arguments) -> "torch.Tensor":
    """A stretched tanh: alpha * tanh(beta * x)."""
    return (arguments.tensor("x") * arguments.number("beta")).tanh() * arguments.number("alpha")


def sigmoid_hard(arguments: Arguments) -> "torch.Tensor":
    """A straight line, alpha * x + beta, held between 0 and 1."""
    return linear_activation(arguments).clamp(0.0, 1.0)


def softmax(arguments: Arguments) -> "torch.Tensor":
    """e^x over its sum along an axis. A row of nothing but -inf gives NaN."""
    return arguments.tensor("x").softmax(arguments.integer("axis", -1))


def softplus_parametric(arguments: Arguments) -> "torch.Tensor":
    """The channel's alpha * log(1 + e^(beta * x)); channels are axis 1."""
    import torch

    x = arguments.tensor("x")
    along_channels = (-1, *(1,) * (x.ndim - 2))
    alpha, beta = (arguments.tensor(name).reshape(along_channels) for name in ("alpha", "beta"))
    return torch.logaddexp(x * beta, torch.zeros(())) * alpha


def thresholded_relu(arguments: Arguments) -> "torch.Tensor":
    """Itself from alpha upwards, zero below."""
    x = arguments.tensor("x")
    return x * (x >= arguments.number("alpha"))


def _leaky(x: "torch.Tensor", slope: float) -> "torch.Tensor":
    return x.clamp(min=0.0) + x.clamp(max=0.0) * slope


OPERATORS: Mapping[str, Operator] = {
    **{name: _plain(name) for name in ("relu", "relu6", "sigmoid", "silu", "softsign")},
    "clamped_relu": clamped_relu,
    "elu": elu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "linear_activation": linear_activation,
    "prelu": prelu,
    "scaled_tanh": scaled_tanh,
    "sigmoid_hard": sigmoid_hard,
    "softmax": softmax,
    "softplus": _plain("softplus"),
    "softplus_parametric": softplus_parametric,
    "thresholded_relu": thresholded_relu,
}
