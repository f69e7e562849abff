"""Running a program: numeric modes, faults found where they begin, memory, borders."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder

from triptych.errors import BackendError, NonFiniteError, TensorMismatchError
from triptych.mil.program import Operation, Program
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.runtimes._mil.values import Mode, Values
from triptych.tensors import TensorSpec

SaveProgram = Callable[..., Path]
Compute = Callable[..., list[np.ndarray]]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


HALF = {"x": noise(3, 5).astype(np.float16)}


def cubed(x: object) -> object:
    return Builder.mul(x=Builder.mul(x=x, y=x), y=x)


def test_fp32_computes_and_hands_out_float32(compute: Compute) -> None:
    (got,) = compute(cubed, HALF, mode="fp32")
    x = HALF["x"].astype(np.float32)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x * x * x)


def test_declared_rounds_each_result(compute: Compute) -> None:
    (got,) = compute(cubed, HALF, mode="declared")
    x = HALF["x"].astype(np.float32)
    squared = (x * x).astype(np.float16).astype(np.float32)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, (squared * x).astype(np.float16))


def test_declared_computes_sums_in_float32(compute: Compute) -> None:
    """Rounded is the result of an operator, not what it adds up inside."""
    feed = {"x": np.full((1, 4096), 1.001, np.float16)}
    (got,) = compute(lambda x: Builder.reduce_sum(x=x), feed, mode="declared")
    assert got == np.float16(feed["x"].astype(np.float64).sum())


def test_casts_round_only_in_the_mode_that_rounds(compute: Compute) -> None:
    feed = {"x": np.array([1.0001], np.float32)}

    def there_and_back(x: object) -> object:
        return Builder.cast(x=Builder.cast(x=x, dtype="fp16"), dtype="fp32")

    assert compute(there_and_back, feed, mode="fp32")[0] == np.float32(1.0001)
    assert compute(there_and_back, feed, mode="declared")[0] == 1.0


# Faults are found where they begin.


def two_layers(x: object) -> object:
    for index in range(2):
        weight = noise(8, 8, seed=index)
        x = Builder.linear(x=x, weight=weight, bias=noise(8, seed=9 + index), name=f"layer_{index}")
        x = Builder.relu(x=x)
    return x


def test_nan_in_a_weight_is_named_at_the_first_operator_that_shows_it(
    save_program: SaveProgram,
) -> None:
    feed = {"x": noise(2, 8)}
    package = save_program(two_layers, feed)
    file = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    content = file.read_bytes()
    planted = noise(8, 8, seed=1)
    assert content.count(planted.tobytes()) == 1
    broken = planted.copy()
    broken[3, 4] = np.nan
    file.write_bytes(content.replace(planted.tobytes(), broken.tobytes()))

    with pytest.raises(NonFiniteError) as caught:
        run(open_program(package), feed)

    error = caught.value
    assert (error.component, error.tensor) == (package.stem, "layer_1")
    assert (error.count, error.size) == (2, 16)
    assert "linear 'layer_1'" in str(error)
    assert "weight 'layer_1_weight_0' (holds NaN itself)" in str(error)
    assert str(error).count("holds NaN itself") == 1


def variance_like(x: object) -> object:
    """As in a group norm written out: what overflows is divided by, and gone."""
    centred = Builder.sub(x=x, y=np.float16(1.0))
    return Builder.real_div(x=centred, y=Builder.square(x=centred, name="squared"))


def test_overflow_that_no_output_shows(compute: Compute) -> None:
    feed = {"x": np.full((2, 2), 300.0, np.float16)}
    (hidden,) = compute(variance_like, feed, mode="declared", check_finite=False)
    np.testing.assert_array_equal(hidden, 0.0)
    with pytest.raises(NonFiniteError, match="First shown by square 'squared'") as caught:
        compute(variance_like, feed, mode="declared")
    assert (caught.value.tensor, caught.value.count) == ("squared", 4)
    compute(variance_like, feed, mode="fp32")  # 89401 is no overflow there


CAUSAL = np.where(np.tri(4) > 0, 0.0, -np.inf).astype(np.float32)


def masked_softmax(x: object) -> object:
    return Builder.softmax(x=Builder.add(x=x, y=CAUSAL), axis=-1)


def test_a_mask_of_infinities_is_no_fault(compute: Compute) -> None:
    (got,) = compute(masked_softmax, {"x": noise(4, 4)})
    np.testing.assert_array_equal(np.triu(got, 1), 0.0)
    np.testing.assert_allclose(got.sum(axis=-1), 1.0, rtol=1e-6)


def test_a_mask_made_by_select_is_no_fault(compute: Compute) -> None:
    def body(x: object) -> object:
        allowed = Builder.greater(x=x, y=-10.0)
        mask = Builder.select(cond=allowed, a=np.zeros(3, np.float32), b=np.float32(-np.inf))
        return Builder.softmax(x=Builder.add(x=x, y=mask))

    (got,) = compute(body, {"x": np.array([1, -20, 2], np.float32)})
    assert got[1] == 0


def test_a_mask_that_leaves_nothing_is_a_fault(compute: Compute) -> None:
    def body(x: object) -> object:
        return Builder.softmax(x=Builder.add(x=x, y=np.float32(-np.inf)))

    with pytest.raises(NonFiniteError, match="First shown by softmax"):
        compute(body, {"x": noise(2, 3)})


def test_a_new_infinity_beside_a_mask_is_a_fault(compute: Compute) -> None:
    def body(x: object) -> object:
        return Builder.softmax(x=Builder.add(x=Builder.exp(x=x, name="grown"), y=CAUSAL))

    with pytest.raises(NonFiniteError, match="First shown by exp 'grown'"):
        compute(body, {"x": np.full((4, 4), 100.0, np.float32)})


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_logarithms_of_nothing(value: float, compute: Compute) -> None:
    with pytest.raises(NonFiniteError, match="First shown by log"):
        compute(lambda x: Builder.log(x=x, epsilon=0.0), {"x": np.array([1.0, value], np.float32)})


def test_nan_in_the_feed_is_named_as_such(compute: Compute) -> None:
    with pytest.raises(NonFiniteError, match="NaN came in with the feed"):
        compute(cubed, {"x": np.array([1, np.nan], np.float32)})


def test_a_feed_beyond_half_precision(save_program: SaveProgram) -> None:
    program = open_program(
        save_program(lambda x: Builder.relu(x=x), {"x": np.array([1], np.float16)})
    )
    feed = {"x": np.array([70_000], np.float32)}
    with pytest.raises(NonFiniteError, match="too large for float16"):
        run(program, feed, mode="declared")
    assert run(program, feed, mode="fp32") == {program.outputs[0].name: 70_000}


# Memory: weights are widened one at a time, results are dropped after their last use.

LAYERS, WIDTH = 12, 96


def deep(x: object) -> object:
    for index in range(LAYERS):
        weight = (noise(WIDTH, WIDTH, seed=index) / 10).astype(np.float16)
        x = Builder.linear(x=x, weight=weight, bias=np.zeros(WIDTH, np.float16))
    return x


@pytest.fixture
def living_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts what is alive of all tensors that operators were given or that were kept."""
    seen: list[weakref.ref[torch.Tensor]] = []
    give, keep = Values.tensor, Values.store

    def tensor(self: Values, name: str) -> torch.Tensor:
        given = give(self, name)
        seen.append(weakref.ref(given))
        return given

    def store(self: Values, spec: TensorSpec, tensor: torch.Tensor, *, source: str) -> None:
        keep(self, spec, tensor, source=source)
        seen.append(weakref.ref(self.computed(spec.name)))

    monkeypatch.setattr(Values, "tensor", tensor)
    monkeypatch.setattr(Values, "store", store)

    def count() -> int:
        alive = [tensor for reference in seen if (tensor := reference()) is not None]
        storages = {each.data_ptr(): each.untyped_storage().nbytes() for each in alive}
        return sum(storages.values())

    return count


@pytest.mark.parametrize("mode", ["fp32", "declared"])
def test_weights_are_widened_one_at_a_time(
    mode: Mode, save_program: SaveProgram, living_bytes: Callable[[], int]
) -> None:
    feed = {"x": np.full((1, WIDTH), 1e-6, np.float16)}
    program = open_program(save_program(deep, feed))
    alive: list[int] = []
    run(program, feed, mode=mode, observe=lambda *_: alive.append(living_bytes()))
    assert len(alive) == LAYERS
    assert 0 < max(alive) < WIDTH * WIDTH, "a widened weight outlived its operator"


def test_results_are_dropped_after_their_last_use(
    save_program: SaveProgram, living_bytes: Callable[[], int]
) -> None:
    def body(x: object) -> object:
        first, *_ = Builder.split(x=x, num_splits=4, axis=0)  # three of them unused
        for _ in range(10):
            first = Builder.relu(x=first)
        return first

    feed = {"x": noise(4, 1000)}
    row_bytes = 4000
    program = open_program(save_program(body, feed))
    alive: list[int] = []
    run(program, feed, observe=lambda *_: alive.append(living_bytes()))
    assert alive[0] == 8 * row_bytes  # the input and its four parts
    assert set(alive[1:]) == {2 * row_bytes}  # one input, one output


# The border.


def test_inputs_are_checked(save_program: SaveProgram) -> None:
    program = open_program(save_program(lambda x: Builder.relu(x=x), {"x": noise(2, 3)}))
    for feed in ({}, {"y": noise(2, 3)}, {"x": noise(3, 2)}, {"x": np.ones((2, 3), np.int32)}):
        with pytest.raises(TensorMismatchError, match=program.name):
            run(program, feed)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_of_any_width_may_be_fed(dtype: str, save_program: SaveProgram) -> None:
    program = open_program(save_program(lambda x: Builder.relu(x=x), {"x": noise(2)}))
    (got,) = run(program, {"x": np.array([0.5, -1.0], dtype)}).values()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [0.5, 0.0])


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_integers_of_any_width_may_be_fed_where_their_values_fit(
    dtype: str, save_program: SaveProgram
) -> None:
    body, feed = (lambda x: Builder.add(x=x, y=np.int32(1))), {"x": np.zeros(2, np.int32)}
    program = open_program(save_program(body, feed))
    (got,) = run(program, {"x": np.array([1, 2], dtype)}).values()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, [2, 3])
    with pytest.raises(BackendError, match="int32 holds no more"):
        run(program, {"x": np.array([2**40, 0], np.int64)})
    with pytest.raises(TensorMismatchError, match="want int32"):
        run(program, {"x": np.array([True, False])})


def test_a_feed_may_lie_in_memory_in_any_order(save_program: SaveProgram) -> None:
    feed = {"x": noise(4, 6)}
    program = open_program(save_program(lambda x: Builder.relu(x=x), feed))
    (got,) = run(program, {"x": noise(6, 4).T[::-1]}).values()
    np.testing.assert_array_equal(got, np.maximum(noise(6, 4).T[::-1], 0))


def test_an_input_that_nothing_uses(save_program: SaveProgram) -> None:
    feed = {"x": noise(2, 3), "spare": noise(4)}
    (got,) = run(open_program(save_program(lambda x, **_: Builder.relu(x=x), feed)), feed).values()
    np.testing.assert_array_equal(got, np.maximum(feed["x"], 0))


def test_outputs_belong_to_the_caller(save_program: SaveProgram) -> None:
    def body(x: object) -> tuple[object, object]:
        same = Builder.identity(x=x)
        return same, Builder.reshape(x=same, shape=[-1])

    feed = {"x": noise(2, 3)}
    program = open_program(save_program(body, feed))
    first, second = run(program, feed).values()
    assert not np.shares_memory(first, second)
    assert not np.shares_memory(first, feed["x"])
    first[:] = 7
    assert not (feed["x"] == 7).any()
    feed["x"][:] = 8
    assert not (second == 8).any()


def test_observers_see_every_operation_and_change_nothing(save_program: SaveProgram) -> None:
    feed = {"x": noise(2, 8)}
    program = open_program(save_program(two_layers, feed))
    seen: list[str] = []

    def observe(operation: Operation, outputs: Mapping[str, np.ndarray]) -> None:
        seen.append(operation.type)
        (array,) = outputs.values()
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0

    observed = run(program, feed, observe=observe)
    assert seen == ["linear", "relu"] * 2
    for name, array in run(program, feed).items():
        np.testing.assert_array_equal(observed[name], array)


# Defaults, which coremltools always writes out and other writers need not.

DEFAULTED: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    **{name: ({}, ()) for name in ("log", "rsqrt", "inverse", "softmax", "gelu")},
    **{f"reduce_{name}": ({}, ()) for name in ("sum", "max", "argmax", "argmin")},
    **{name: ({}, ()) for name in ("cumsum", "band_part", "reverse", "instance_norm")},
    "upsample_nearest_neighbor": ({}, ()),
    "batch_norm": (
        {"mean": noise(3), "variance": np.abs(noise(3))},
        ("mean", "variance"),
    ),
    "layer_norm": ({"axes": [0, 1, 2]}, ()),
    "conv": ({"weight": noise(2, 3, 2)}, ("weight",)),
    "pad": ({"pad": [1, 2]}, ("pad",)),
    "split": ({"num_splits": 2, "axis": 0}, ("num_splits", "axis")),
    "linear": ({"weight": noise(2, 4)}, ("weight",)),
    "matmul": ({"y": noise(4, 2)}, ("y",)),
    "gather": ({"indices": np.array([1, 0], np.int32)}, ("indices",)),
    "slice_by_index": ({"begin": [0, 1, 1], "end": [2, 3, 3]}, ("begin", "end")),
}


@pytest.mark.parametrize("name", DEFAULTED)
def test_what_is_not_written_has_its_default(name: str, save_program: SaveProgram) -> None:
    settings, required = DEFAULTED[name]
    feed = {"x": np.abs(noise(2, 3, 4))}
    program = open_program(save_program(lambda x: getattr(Builder, name)(x=x, **settings), feed))
    bare = without_constants(program, kept=required)
    for got, want in zip(run(bare, feed).values(), run(program, feed).values(), strict=True):
        np.testing.assert_array_equal(got, want)


def without_constants(program: Program, *, kept: tuple[str, ...]) -> Program:
    operations = [
        replace(
            operation,
            inputs={
                parameter: names
                for parameter, names in operation.inputs.items()
                if parameter in kept or names[0] not in program.constants
            },
        )
        for operation in program.operations
    ]
    return replace(program, operations=tuple(operations))
