"""What an operator is called with, and how it refuses it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

from triptych.errors import BackendError
from triptych.mil.program import Operation

if TYPE_CHECKING:
    import torch


@runtime_checkable
class ValueSource(Protocol):
    """Where an operator's inputs come from: values.py, in a run."""

    def tensor(self, name: str) -> "torch.Tensor":
        """A value to compute with: floats as float32, integers as int32 or wider, or booleans."""

    def text(self, name: str) -> str:
        """A constant word."""


@final
class Arguments:
    """The inputs of one operation, by parameter. A weight is read when it is asked for.

    A parameter that has a default in the operator's definition may be absent from the program.

    Attributes:
        opset: generation of operators, as in Program.
    """

    def __init__(self, operation: Operation, values: ValueSource, *, opset: int) -> None:
        self._operation = operation
        self._values = values
        self.opset = opset

    def tensor(self, parameter: str) -> "torch.Tensor":
        """A tensor that the definition requires."""
        return self.tensors(parameter)[0]

    def tensors(self, parameter: str) -> list["torch.Tensor"]:
        """The tensors of a parameter that takes a list."""
        names = self._operation.inputs.get(parameter)
        if not names:
            raise self.refusal(f"no {parameter!r}", "one")
        return [self._values.tensor(name) for name in names]

    def optional_tensor(self, parameter: str) -> "torch.Tensor | None":
        """A tensor, or None where the program gives none."""
        return self.tensor(parameter) if parameter in self._operation.inputs else None

    def integers(self, parameter: str, default: list[int] | None = None) -> list[int]:
        """A vector of integers; a lone integer is a vector of one."""
        if default is not None and parameter not in self._operation.inputs:
            return default
        return [int(number) for number in self.tensor(parameter).reshape(-1).tolist()]

    def integer(self, parameter: str, default: int | None = None) -> int:
        """One integer."""
        return self.integers(parameter, None if default is None else [default])[0]

    def number(self, parameter: str, default: float | None = None) -> float:
        """One number."""
        if default is not None and parameter not in self._operation.inputs:
            return default
        return float(self.tensor(parameter).item())

    def flags(self, parameter: str, default: list[bool]) -> list[bool]:
        """A vector of booleans."""
        return [bool(flag) for flag in self.integers(parameter, [int(flag) for flag in default])]

    def flag(self, parameter: str, *, default: bool) -> bool:
        """One boolean."""
        return self.flags(parameter, [default])[0]

    def text(self, parameter: str, default: str | None = None) -> str:
        """One word."""
        names = self._operation.inputs.get(parameter)
        if names:
            return self._values.text(names[0])
        if default is None:
            raise self.refusal(f"no {parameter!r}", "one")
        return default

    def axis(self, parameter: str, rank: int, default: int | None = None) -> int:
        """One axis, counted from the front."""
        axis = self.integer(parameter, default)
        return axis + rank if axis < 0 else axis

    def axes(self, parameter: str, rank: int) -> list[int]:
        """Axes, counted from the front, ascending; all of them by default."""
        given = self.integers(parameter, list(range(rank)))
        return sorted(axis + rank if axis < 0 else axis for axis in given)

    def refusal(self, actual: str, expected: str) -> BackendError:
        """The error for inputs whose result the operator's definition leaves open."""
        operation = self._operation
        return BackendError(f"{operation.type} {operation.name!r}: got {actual}, want {expected}.")


Operator = Callable[[Arguments], "torch.Tensor | list[torch.Tensor]"]
"""Computes an operation's outputs, in order, in float32 where they are floats."""
