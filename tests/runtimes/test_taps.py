"""What lies between two values of a graph, what a sketch promises, and who is who by name."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.runtimes._taps.by_scope import Bound, bind_by_scope
from triptych.runtimes._taps.graph import Graph, Operator
from triptych.runtimes._taps.layouts import in_graph_layout, in_reference_layout
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import estimated_rel_l2, sketch
from triptych.runtimes._taps.trace import Call, Trace
from triptych.types import Array

quick = settings(deadline=None, max_examples=40)


def gaussian(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def step(name: str, kind: str, inputs: str, output: str) -> Operator:
    named = name.startswith("/")
    return Operator(
        name=name,
        type=kind,
        inputs=tuple(inputs.split()),
        outputs=(output,),
        names=(name,) if named else (),
    )


# --- sketches ------------------------------------------------------------------------------------


def estimate(actual: Array, expected: Array) -> float:
    return estimated_rel_l2(sketch(actual), sketch(expected))


@quick
@given(
    size=st.integers(1, 3000),
    error=st.sampled_from([1e-5, 1e-3, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_distance_is_estimated_within_a_factor_of_two(size: int, error: float, seed: int) -> None:
    expected = gaussian(size, seed=seed)
    difference = gaussian(size, seed=seed + 1)
    difference *= error * np.linalg.norm(expected) / np.linalg.norm(difference)
    actual = expected + difference
    true = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    assert true / 2 <= estimate(actual, expected) <= true * 2


@pytest.mark.parametrize("place", [0, 17, 4095])
def test_one_wrong_element_is_seen(place: int) -> None:
    expected = gaussian(4, 16, 64)
    actual = expected.copy()
    actual.flat[place] += 5
    true = 5 / float(np.linalg.norm(expected))
    assert estimate(actual, expected) == pytest.approx(true, rel=0.15)


def test_a_wrong_channel_is_seen_wherever_it_lies() -> None:
    expected = gaussian(2, 64, 32, 8)
    for axis in range(4):
        actual = np.moveaxis(expected.copy(), axis, 0)
        actual[0] *= -1
        actual = np.moveaxis(actual, 0, axis)
        true = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        assert true / 2 <= estimate(actual, expected) <= true * 2


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_passes_no_limit(wrong: float) -> None:
    expected = gaussian(3, 5, 7)
    spoilt = expected.copy()
    spoilt[1, 2, 3] = wrong
    for pair in ((spoilt, expected), (expected, spoilt), (spoilt, spoilt)):
        assert math.isnan(estimate(*pair))


def test_zeros_and_other_shapes() -> None:
    zeros = np.zeros((4, 4), np.float32)
    assert estimate(zeros, zeros) == 0
    assert estimate(gaussian(4, 4), zeros) == math.inf
    assert estimate(zeros, gaussian(4, 4)) == pytest.approx(1)
    assert math.isnan(estimate(gaussian(2, 8), gaussian(4, 4)))


# --- layouts and names ---------------------------------------------------------------------------


@pytest.mark.parametrize("graph_shape", [(2, 8, 1, 15), (2, 8, 3, 5)])
def test_the_neural_engines_layout_there_and_back(graph_shape: tuple[int, ...]) -> None:
    tokens = gaussian(2, 15, 8)
    laid_out = in_graph_layout(tokens, graph_shape)
    assert laid_out.shape == graph_shape
    assert np.array_equal(laid_out[1, 3].ravel(), tokens[1, :, 3])
    back = in_reference_layout(laid_out, tokens.shape)
    assert back is not None
    assert np.array_equal(back, tokens)


def test_what_cannot_be_the_same_tensor_is_refused() -> None:
    assert in_reference_layout(gaussian(2, 8, 1, 15), (2, 8, 15)) is None
    assert in_reference_layout(gaussian(2, 15), (15, 2)) is None


@pytest.mark.parametrize(
    ("constant", "parameter"),
    [
        ("unet.conv_in.weight", "unet.conv_in.weight"),
        ("conv_in.weight", "unet.conv_in.weight"),
        ("self.conv_in.weight", "unet.conv_in.weight"),
        ("self.model.conv_in.weight", "unet.conv_in.weight"),
        ("unet_unet_conv_in_weight", "unet.conv_in.weight"),
        ("unet_unet_conv_in_weight_to_fp16_palettized", "unet.conv_in.weight"),
        ("unet_unet_down_blocks_1_conv_bias_to_fp16", "unet.down_blocks.1.conv.bias"),
        ("add_1_gamma_1", None),
        ("onnx::MatMul_1234", None),
    ],
)
def test_parameters_are_found_by_what_exporters_make_of_their_names(
    constant: str, parameter: str | None
) -> None:
    parameters = ["unet.conv_in.weight", "unet.down_blocks.1.conv.bias"]
    assert ParameterNames(parameters, prefix="unet.").find(constant) == parameter


# --- regions -------------------------------------------------------------------------------------


GRAPH = Graph(
    ("x",),
    ("e",),
    (
        step("/a/Conv", "Conv", "x a.weight", "a"),
        step("shape", "Shape", "a", "lengths"),
        step("cast", "Cast", "b.weight", "wide"),
        step("/b/MatMul", "MatMul", "a wide", "b"),
        step("/Reshape", "Reshape", "b lengths", "c"),
        step("/Add", "Add", "c a", "d"),
        step("/e/Relu", "Relu", "d", "e"),
    ),
)


def test_a_region_ends_at_known_values() -> None:
    region = GRAPH.region("d", {"a", "b", "d"})
    assert set(region.inputs) == {"a", "b"}
    assert [each.type for each in region.operators] == ["Reshape", "Add"]
    assert [each.type for each in region.constant_operators] == ["Shape"]


def test_what_only_lends_its_shape_is_no_input() -> None:
    region = GRAPH.region("c", {"a", "b"})
    assert (region.inputs, region.shape_inputs) == (("b",), ("a",))


def test_a_region_reaches_to_what_is_fed() -> None:
    region = GRAPH.region("b", set())
    assert region.inputs == ("x",)
    assert set(region.constants) == {"a.weight", "b.weight"}


def test_constants_are_followed_to_their_names() -> None:
    region = GRAPH.region("b", {"a"})
    assert [(each.name, value) for each, value in GRAPH.constant_inputs(region)] == [
        ("/b/MatMul", "wide")
    ]
    assert GRAPH.constant_roots("wide") == ("b.weight",)


# --- binding by names ----------------------------------------------------------------------------


def call(module: str, kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Call:
    return Call(module=module, kind=kind, inputs=inputs, outputs=outputs, parent=0, is_leaf=True)


def trace(*leaves: Call) -> Trace:
    root = Call(module="", kind="Net", inputs=(0,), outputs=(), parent=None, is_leaf=False)
    numbers = {number for leaf in leaves for number in (*leaf.inputs, *leaf.outputs)}
    return Trace((root, *leaves), ((1,),) * (max(numbers) + 1), {})


def pairs(bounds: tuple[Bound, ...]) -> dict[str, tuple[int, str]]:
    return {bound.value: (bound.tensor, bound.role) for bound in bounds}


def test_a_modules_argument_and_result_are_found() -> None:
    """What is between two modules is the second's argument."""
    seen = trace(
        call("a", "Conv2d", (0,), (1,)),
        call("b", "Linear", (1,), (2,)),
        call("e", "ReLU", (3,), (4,)),
    )
    found = pairs(bind_by_scope(GRAPH, seen, ""))
    assert found == {
        "x": (0, "input"),
        "a": (1, "output"),
        "b": (2, "output"),
        "d": (3, "input"),
        "e": (4, "output"),
    }


def test_calls_of_one_module_are_told_by_what_they_were_given() -> None:
    """The tracer numbers what is left of them: its second is the module's third."""
    graph = Graph(
        ("x",),
        ("second",),
        (
            step("/a/Conv", "Conv", "x w", "a"),
            step("/act/Relu", "Relu", "a", "first"),
            step("/b/Conv", "Conv", "first v", "b"),
            step("/act_1/Relu", "Relu", "b", "second"),
        ),
    )
    seen = trace(
        call("a", "Conv2d", (0,), (1,)),
        call("act", "ReLU", (1,), (2,)),
        call("act", "ReLU", (9,), (8,)),
        call("b", "Conv2d", (2,), (3,)),
        call("act", "ReLU", (3,), (4,)),
    )
    found = pairs(bind_by_scope(graph, seen, ""))
    assert found["first"] == (2, "output")
    assert found["second"] == (4, "output")


def test_a_norm_that_an_engine_took_apart_is_put_together() -> None:
    """OpenVINO gives the parts of a layer norm no names; its argument is what they read."""
    graph = Graph(
        ("x",),
        ("out",),
        (
            step("/a/Conv", "Conv", "x w", "a"),
            step("/Add", "Add", "a x", "sum"),
            step("MVN_1", "MVN", "sum axes", "centred"),
            step("Multiply_2", "Multiply", "centred gamma", "scaled"),
            step("/norm/Add", "Add", "scaled beta", "out"),
        ),
    )
    seen = trace(call("a", "Conv2d", (0,), (1,)), call("norm", "LayerNorm", (2,), (3,)))
    found = pairs(bind_by_scope(graph, seen, ""))
    assert found["sum"] == (2, "input")
    assert "scaled" not in found


def test_an_argument_without_a_name_is_not_guessed() -> None:
    """It may be the result of operators that an engine put together, in another layout."""
    graph = Graph(
        ("x",),
        ("out",),
        (
            step("/a/Conv", "Conv", "x w", "a"),
            step("Transpose_1", "Transpose", "a order", "turned"),
            step("/b/MatMul", "MatMul", "turned v", "out"),
        ),
    )
    seen = trace(call("a", "Conv2d", (0,), (1,)), call("b", "Linear", (2,), (3,)))
    assert "turned" not in pairs(bind_by_scope(graph, seen, ""))


@pytest.mark.parametrize("wrapper", ["__module.", "__module.model."])
def test_openvinos_own_traces_are_read_too(wrapper: str) -> None:
    name = f"{wrapper}down.0.conv/aten::_convolution/Convolution"
    operator = Operator(
        name=name, type="Convolution", inputs=("x", "w"), outputs=("out",), names=(name,)
    )
    seen = trace(call("unet.down.0.conv", "Conv2d", (0,), (1,)))
    found = pairs(bind_by_scope(Graph(("x",), ("out",), (operator,)), seen, "unet."))
    assert found["out"] == (1, "output")
