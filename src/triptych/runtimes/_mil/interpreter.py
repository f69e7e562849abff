"""Running an ML program, operator by operator."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from triptych.dependencies import import_optional
from triptych.errors import BackendError
from triptych.mil.program import Operation, Program
from triptych.mil.reading import read_program
from triptych.runtimes._mil.finite import check_fed, check_result
from triptych.runtimes._mil.operators.arguments import Arguments
from triptych.runtimes._mil.operators.constexpr import DECOMPRESSORS
from triptych.runtimes._mil.operators.table import OPERATORS
from triptych.runtimes._mil.values import Mode, Values
from triptych.runtimes.pytorch import exact_arithmetic
from triptych.tensors import TensorSpec, check_tensors
from triptych.types import Array, TensorMap

Observer: TypeAlias = Callable[[Operation, Mapping[str, Array]], None]
"""Told of each operation and its outputs, which are read-only and valid during the call."""


def open_program(package: Path) -> Program:
    """Read a .mlpackage and make sure that every operator in it is known.

    Raises:
        BundleError: the package is incomplete or damaged, holds another kind of model, or a
            program with operators that are not known; all of them are named.
        MissingDependencyError: coremltools is not installed.
    """
    return read_program(package, operators=OPERATORS.keys() | DECOMPRESSORS.keys())


def run(
    program: Program,
    feed: TensorMap,
    *,
    mode: Mode = "fp32",
    observe: Observer | None = None,
    check_finite: bool = True,
) -> dict[str, Array]:
    """Compute a program's outputs on the CPU.

    Args:
        program: an opened program.
        feed: its inputs by name. A float of any width may be fed as any other, an integer too if
            its value fits.
        mode: "fp32" computes and hands out float32 where the program says float16; "declared"
            rounds every input and every result to the dtype that the program declares.
        observe: called after each operation; unpacking a weight is none.
        check_finite: stop at the first operator that makes NaN or infinity (finite.py).

    Returns:
        The outputs by name, in the declared dtypes, except as `mode` says.

    Raises:
        TensorMismatchError: the feed is not what the program takes.
        NonFiniteError: an operator made NaN or infinity.
        BackendError: an operator could not run on its inputs.
        MissingDependencyError: torch is not installed.
    """
    torch = import_optional("torch", extra="export")
    check_tensors(feed, _fed_specs(program, feed), component=program.name)
    values = Values(program, mode=mode)
    with torch.inference_mode(), exact_arithmetic():
        for spec in program.inputs:
            fed = feed[spec.name]
            copied = np.array(fed, order="C")  # results share nothing with the feed
            values.store(spec, torch.from_numpy(copied), source=program.name)
            if check_finite:
                check_fed(program, spec, fed, values)
        for operation, finished in _steps(program):
            _compute(program, operation, values)
            if check_finite:
                check_result(program, operation, values)
            if observe is not None:
                observe(operation, _observed(operation, values))
            for name in finished:
                values.drop(name)
        return {spec.name: values.output(spec) for spec in program.outputs}


def _fed_specs(program: Program, feed: TensorMap) -> list[TensorSpec]:
    """The program's inputs, accepting another width of the same kind of number."""
    fed = {name: array.dtype for name, array in feed.items()}
    return [
        replace(spec, dtype=str(fed[spec.name]))
        if spec.name in fed and _kind(fed[spec.name]) == _kind(np.dtype(spec.dtype))
        else spec
        for spec in program.inputs
    ]


def _kind(dtype: np.dtype) -> str:
    """Float, integer or other; signed and unsigned integers are one."""
    return dtype.kind.replace("u", "i")


def _steps(program: Program) -> list[tuple[Operation, list[str]]]:
    """The operations to compute, each with the values that nothing needs after it."""
    steps = [step for step in program.operations if not step.is_decompression]
    computed = {spec.name for spec in program.inputs}
    last_use: dict[str, int] = {}
    for index, step in enumerate(steps):
        outputs = [spec.name for spec in step.outputs]
        computed.update(outputs)
        used = [name for names in step.inputs.values() for name in names]
        last_use.update(dict.fromkeys([*used, *outputs], index))
    finished: list[list[str]] = [[] for _ in steps]
    for name in last_use.keys() & computed - {spec.name for spec in program.outputs}:
        finished[last_use[name]].append(name)
    return list(zip(steps, finished, strict=True))


def _compute(program: Program, operation: Operation, values: Values) -> None:
    """Run one operator and store its results."""
    source = f"{program.name}: {operation.type} {operation.name!r}"
    arguments = Arguments(operation, values, opset=program.opset)
    try:
        results = OPERATORS[operation.type](arguments)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise BackendError(f"{source}: could not run. {error}") from error
    tensors = results if isinstance(results, list) else [results]
    if len(tensors) != len(operation.outputs):
        raise BackendError(
            f"{source}: got {len(tensors)} results, want {len(operation.outputs)} as the program "
            "declares."
        )
    for spec, tensor in zip(operation.outputs, tensors, strict=True):
        values.store(spec, tensor, source=source)


def _observed(operation: Operation, values: Values) -> dict[str, Array]:
    arrays = {}
    for spec in operation.outputs:
        array: Array = values.computed(spec.name).numpy()
        array.flags.writeable = False
        arrays[spec.name] = array
    return arrays
