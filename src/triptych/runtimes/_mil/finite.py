"""Finding the first operator that shows NaN or infinity.

Checking only a network's outputs misses faults: in a group norm written out as operators, a square
that overflows becomes x / inf = 0, and everything after it is finite and wrong.

What counts as a fault:

- NaN in the result of any operator.
- An infinity in the result of an operator none of whose inputs holds one: it was made there, by
  overflow, by a division, or by rounding to half precision.

What does not: an infinity handed on. It comes from a constant, as the -inf of a causal mask does,
or was fed; adding it to scores, selecting it, moving it about are what masks are for, and softmax
makes it 0. Little hides behind it: +inf among scores turns into NaN in the softmax, and a -inf that
overflow adds to a mask's is as far from mattering as the mask's own. Constants themselves are not
checked; a NaN in a weight is reported at the first operator that shows it.
"""

from typing import TYPE_CHECKING

import numpy as np

from triptych.errors import NonFiniteError
from triptych.mil.program import Operation, Program
from triptych.runtimes._mil.values import Values
from triptych.tensors import TensorSpec
from triptych.types import Array

if TYPE_CHECKING:
    import torch


def check_result(program: Program, operation: Operation, values: Values) -> None:
    """Check what an operation computed.

    Raises:
        NonFiniteError: it made NaN or infinity; the hint names the operator and its inputs.
    """
    for spec in operation.outputs:
        result = values.computed(spec.name)
        if _is_finite(result):
            continue
        names = [name for names in operation.inputs.values() for name in names]
        if not bool(result.isnan().any()) and any(
            bool(values.tensor(name).isinf().any())
            for name in names
            if not isinstance(program.constants.get(name), str)
        ):
            continue
        raise _error(
            program, spec, result, hint=f"First shown by {_told(program, operation, values)}."
        )


def check_fed(program: Program, spec: TensorSpec, fed: Array, values: Values) -> None:
    """Check an input as it was stored; infinities that the caller fed are theirs.

    Raises:
        NonFiniteError: NaN was fed, or a number that the declared dtype cannot hold.
    """
    stored = values.computed(spec.name)
    if _is_finite(stored):
        return
    if bool(stored.isnan().any()):
        raise _error(program, spec, stored, hint="NaN came in with the feed.")
    if not np.isinf(fed).any():
        raise _error(
            program, spec, stored, hint=f"The feed holds numbers too large for {spec.dtype}."
        )


def _is_finite(tensor: "torch.Tensor") -> bool:
    """Whether all elements are finite, without an array of answers."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    smallest, largest = tensor.aminmax()  # NaN where there is one
    return bool(smallest.isfinite()) and bool(largest.isfinite())


def _error(
    program: Program, spec: TensorSpec, tensor: "torch.Tensor", *, hint: str
) -> NonFiniteError:
    return NonFiniteError(
        component=program.name,
        tensor=spec.name,
        count=int(tensor.numel() - tensor.isfinite().sum()),
        size=tensor.numel(),
        hint=hint,
    )


def _told(program: Program, operation: Operation, values: Values) -> str:
    """An operation and its inputs in words."""
    inputs = []
    for parameter, names in operation.inputs.items():
        for name in names:
            constant = program.constants.get(name)
            if isinstance(constant, str):
                continue
            holds_nan = bool(values.tensor(name).isnan().any())
            inputs.append(f"{parameter} {name!r}{' (holds NaN itself)' if holds_nan else ''}")
    return f"{operation.type} {operation.name!r} from {', '.join(inputs)}"
