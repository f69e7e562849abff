"""Programs joined into one compute what they do in turn, whatever names they share."""

import numpy as np

from triptych.mil.joining import joined
from triptych.mil.program import Operation, Program
from triptych.runtimes._mil.interpreter import run
from triptych.tensors import TensorSpec


def spec(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=(3,))


def step(kind: str, output: str, **inputs: str) -> Operation:
    return Operation(
        name=output,
        type=kind,
        inputs={parameter: (name,) for parameter, name in inputs.items()},
        outputs=(spec(output),),
    )


def program(
    name: str, *steps: Operation, takes: tuple[str, ...], gives: str, constant: float
) -> Program:
    return Program(
        name=name,
        opset=7,
        inputs=tuple(map(spec, takes)),
        outputs=(spec(gives),),
        operations=steps,
        constants={"c": np.array([constant] * 3, np.float32)},
    )


FIRST = program(
    "first",
    step("mul", "inner", x="x", y="c"),
    step("add", "handed", x="inner", y="x"),
    takes=("x",),
    gives="handed",
    constant=2.0,
)
SECOND = program(
    "second",
    step("add", "inner", x="handed", y="c"),
    step("mul", "result", x="inner", y="x"),
    takes=("handed", "x"),
    gives="result",
    constant=10.0,
)


def test_joined_programs_compute_what_they_do_in_turn() -> None:
    x = np.array([1, -2, 3], np.float32)
    handed = run(FIRST, {"x": x})["handed"]
    expected = run(SECOND, {"handed": handed, "x": x})["result"]
    whole = joined([FIRST, SECOND])
    assert [port.name for port in whole.inputs] == ["x"]
    assert np.array_equal(run(whole, {"x": x})["result"], expected)
    assert np.array_equal(expected, (3 * x + 10) * x)


def test_values_of_one_name_are_kept_apart() -> None:
    whole = joined([FIRST, SECOND])
    outputs = [port.name for each in whole.operations for port in each.outputs]
    assert outputs == ["inner", "handed", "second/inner", "result"]
    assert set(whole.constants) == {"c", "second/c"}


def test_one_program_stays_as_it_is() -> None:
    assert joined([FIRST]) == FIRST
