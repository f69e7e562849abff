"""Operators that treat every element alike, two broadcast tensors included.

Definitions: defs iOS15/elementwise_unary.py, elementwise_binary.py, control_flow.py (select), and
their iOS17 successors, which differ in the dtypes they allow.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch

_UNARY = (
    *("abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2"),
    *("floor", "logical_not", "round", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
)
"""Named alike in torch."""

_BINARY: Mapping[str, str] = {
    "add": "add",
    "equal": "eq",
    "floor_div": "floor_divide",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_xor": "logical_xor",
    "maximum": "maximum",
    "minimum": "minimum",
    "mod": "remainder",
    "mul": "mul",
    "not_equal": "ne",
    "pow": "pow",
    "real_div": "true_divide",
    "sub": "sub",
}
"""With their names in torch. The remainder has the sign of the divisor, as Python's."""


def _unary(torch_name: str) -> Operator:
    def apply(arguments: Arguments) -> "torch.Tensor":
        import torch

        result: torch.Tensor = getattr(torch, torch_name)(arguments.tensor("x"))
        return result

    return apply


def _binary(torch_name: str) -> Operator:
    def apply(arguments: Arguments) -> "torch.Tensor":
        import torch

        result: torch.Tensor = getattr(torch, torch_name)(
            arguments.tensor("x"), arguments.tensor("y")
        )
        return result

    return apply


def cast(arguments: Arguments) -> "torch.Tensor":
    """To another dtype: fractions are cut off towards zero, and anything but zero is true.

    The interpreter itself rounds floats to the declared dtype, in the mode that does.
    """
    import torch

    x = arguments.tensor("x")
    match arguments.text("dtype"):
        case "fp16" | "fp32":
            return x.float()
        case "bool":
            return x != 0
        case _:
            return x.to(torch.int64)


def clip(arguments: Arguments) -> "torch.Tensor":
    """Between alpha and beta."""
    return arguments.tensor("x").clamp(arguments.number("alpha"), arguments.number("beta"))


def identity(arguments: Arguments) -> "torch.Tensor":
    """The same."""
    return arguments.tensor("x")


def inverse(arguments: Arguments) -> "torch.Tensor":
    """1 / (x + epsilon)."""
    return (arguments.tensor("x") + arguments.number("epsilon", 1e-4)).reciprocal()


def log(arguments: Arguments) -> "torch.Tensor":
    """The natural logarithm of x + epsilon."""
    return (arguments.tensor("x") + arguments.number("epsilon", 1e-45)).log()


def rsqrt(arguments: Arguments) -> "torch.Tensor":
    """1 / sqrt(x + epsilon)."""
    return (arguments.tensor("x") + arguments.number("epsilon", 1e-12)).rsqrt()


def select(arguments: Arguments) -> "torch.Tensor":
    """Where cond is true a, elsewhere b; all three are broadcast."""
    import torch

    return torch.where(arguments.tensor("cond"), arguments.tensor("a"), arguments.tensor("b"))


def threshold(arguments: Arguments) -> "torch.Tensor":
    """No less than alpha."""
    return arguments.tensor("x").clamp(min=arguments.number("alpha"))


OPERATORS: Mapping[str, Operator] = {
    **{name: _unary(name) for name in _UNARY},
    **{name: _binary(torch_name) for name, torch_name in _BINARY.items()},
    "cast": cast,
    "clip": clip,
    "identity": identity,
    "inverse": inverse,
    "log": log,
    "rsqrt": rsqrt,
    "select": select,
    "threshold": threshold,
}
