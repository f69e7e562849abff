"""What an ML program says, as values: its border, its operations in order, its constants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

from triptych.mil.weights import Weight
from triptych.tensors import TensorSpec
from triptych.types import Array

Constant: TypeAlias = Array | str | Weight
"""Small arrays and words lie in the program itself, weights in the file beside it."""

DECOMPRESSION_PREFIX = "constexpr_"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step of a program.

    Attributes:
        name: the step's own name; most often that of its first output.
        type: which operator.
        inputs: for each parameter given, the names of the values bound to it; more than one only
            where an operator takes a list.
        outputs: what it computes; the dtype is the one the program declares for the result.
    """

    name: str
    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[TensorSpec, ...]

    @property
    def is_decompression(self) -> bool:
        """Whether it unpacks a weight: its inputs are constants, and so is its result."""
        return self.type.startswith(DECOMPRESSION_PREFIX)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One function of an ML program.

    Attributes:
        name: the package's name, for messages.
        opset: generation of its operators: 5 for iOS15, one more each year, 8 for iOS18.
        inputs: what it must be fed; a word for an axis whose length is left open.
        outputs: what it computes, in the program's order.
        operations: in order; constants are not among them.
        constants: values fixed when the program was written, by name.
    """

    name: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Constant]
