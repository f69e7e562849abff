"""Programs that follow one another, as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from triptych.mil.program import Constant, Operation, Program
from triptych.tensors import TensorSpec


def joined(programs: Sequence[Program]) -> Program:
    """One program that computes what several do in turn, each fed what those before it computed.

    Where two use one name for different values, the later's gets the program's name in front.
    What the last one computes is given, as a session of several gives it.
    """
    first, *rest = programs
    for program in rest:
        first = _followed(first, program)
    return first


def _followed(first: Program, second: Program) -> Program:
    handed_on = {spec.name for spec in second.inputs}
    taken = {spec.name for step in first.operations for spec in step.outputs} | {
        *first.constants,
        *(spec.name for spec in first.inputs),
    }
    inner = {spec.name for step in second.operations for spec in step.outputs} | {*second.constants}
    renamed = {name: f"{second.name}/{name}" for name in inner & taken - handed_on}
    computed = {spec.name for spec in first.outputs}
    known = {spec.name for spec in first.inputs} | computed
    constants: dict[str, Constant] = {
        renamed.get(name, name): constant for name, constant in second.constants.items()
    }
    return replace(
        first,
        opset=max(first.opset, second.opset),
        inputs=(*first.inputs, *(spec for spec in second.inputs if spec.name not in known)),
        outputs=tuple(_renamed_spec(spec, renamed) for spec in second.outputs),
        operations=(
            *first.operations,
            *(_renamed_step(step, renamed) for step in second.operations),
        ),
        constants={**first.constants, **constants},
    )


def _renamed_step(step: Operation, renamed: Mapping[str, str]) -> Operation:
    return replace(
        step,
        inputs={
            parameter: tuple(renamed.get(name, name) for name in names)
            for parameter, names in step.inputs.items()
        },
        outputs=tuple(_renamed_spec(spec, renamed) for spec in step.outputs),
    )


def _renamed_spec(spec: TensorSpec, renamed: Mapping[str, str]) -> TensorSpec:
    return replace(spec, name=renamed.get(spec.name, spec.name))
