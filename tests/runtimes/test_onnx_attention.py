"""Attention that is written out is found, and nothing else is taken for it."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from triptych.bundle.bundle import Bundle
from triptych.models.feeds import component_cases
from triptych.runtimes._onnx_attention import PASS_NAME, fuse_attention
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.checked import CheckedSession
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.types import Array, ComponentName

HEADS, CHANNELS = 2, 8
NO_TEXT = np.zeros((1, 77), np.int64)


def constant(name: str, values: object) -> onnx.NodeProto:
    return helper.make_node(
        "Constant", [], [name], value=numpy_helper.from_array(np.array(values), name)
    )


def written_out() -> onnx.ModelProto:
    """Attention from `q`, `k`, `v` to `y`, as torch.onnx writes it; every node has a name."""
    split, transpose = [], []
    for name, permutation in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        split.append(helper.make_node("Reshape", [name, f"{name}_axes"], [f"{name}_split"]))
        transpose.append(
            helper.make_node(
                "Transpose", [f"{name}_split"], [f"{name}_heads"], perm=permutation,
                name=f"transpose_{name}",
            )
        )  # fmt: skip
    axes = [
        helper.make_node("Shape", ["q"], ["q_shape"]),
        constant("zero", 0),
        constant("first", [0]),
        helper.make_node("Gather", ["q_shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batch_axis"]),
        constant("any", [-1]),
        constant("heads", [HEADS]),
        constant("width", [CHANNELS // HEADS]),
        constant("channels", [CHANNELS]),
        *(
            helper.make_node(
                "Concat", ["batch_axis", "any", "heads", "width"], [f"{name}_axes"], axis=0,
                name=f"axes_{name}",
            )
            for name in ("q", "k", "v")
        ),
        helper.make_node("Concat", ["batch_axis", "any", "channels"], ["y_axes"], axis=0),
    ]  # fmt: skip
    scale = [
        constant("last", [-1]),
        constant("end", [np.iinfo(np.int64).max]),
        helper.make_node("Shape", ["q_heads"], ["heads_shape"]),
        helper.make_node("Slice", ["heads_shape", "last", "end"], ["width_found"]),
        helper.make_node("Cast", ["width_found"], ["width_float"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["width_float"], ["width_root"]),
        constant("one", np.array([1], np.float32)),
        helper.make_node("Div", ["one", "width_root"], ["scale"], name="scale"),
        helper.make_node("Cast", ["scale"], ["scale_cast"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["scale_cast"], ["scale_root"]),
    ]
    attention = [
        helper.make_node("Mul", ["q_heads", "scale_root"], ["q_scaled"], name="scale_q"),
        helper.make_node("Mul", ["k_heads", "scale_root"], ["k_scaled"]),
        helper.make_node("MatMul", ["q_scaled", "k_scaled"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["weights", "v_heads"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["joined"], perm=[0, 2, 1, 3], name="join"),
        helper.make_node("Reshape", ["joined", "y_axes"], ["y"]),
    ]
    floats = ["batch", "length", CHANNELS]
    return helper.make_model(
        helper.make_graph(
            [*axes, *split, *transpose, *scale, *attention],
            "attention",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, floats) for name in "qkv"],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, floats)],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def run(model: onnx.ModelProto) -> Array:
    onnx.checker.check_model(model)
    random = np.random.default_rng(0)
    feed = {name: random.standard_normal((3, 5, CHANNELS), np.float32) for name in "qkv"}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values: Array = session.run(["y"], feed)[0]
    return values


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in (node.name, *node.output))


def set_value(model: onnx.ModelProto, name: str, values: object) -> None:
    named(model, name).CopyFrom(constant(name, values))


def test_attention_becomes_one_node_that_gives_the_same() -> None:
    model = written_out()
    expected = run(model)
    assert fuse_attention(model) == 1
    (node,) = model.graph.node
    assert (node.op_type, list(node.input), list(node.output)) == (
        "MultiHeadAttention", ["q", "k", "v"], ["y"],
    )  # fmt: skip
    np.testing.assert_allclose(run(model), expected, atol=1e-6)


def half_scale(model: onnx.ModelProto) -> None:
    set_value(model, "one", np.array([0.5], np.float32))


def scale_and_a_half(model: onnx.ModelProto) -> None:
    set_value(model, "one", np.array([1.5], np.float32))


def scale_of_another_query(model: onnx.ModelProto) -> None:
    named(model, "heads_shape").input[0] = "v_heads"


def scale_of_another_axis(model: onnx.ModelProto) -> None:
    set_value(model, "last", [-2])
    set_value(model, "end", [-1])


def unscaled_query(model: onnx.ModelProto) -> None:
    named(model, "scores").input[0] = "q_heads"


def masked(model: onnx.ModelProto) -> None:
    named(model, "softmax").input[0] = "masked"
    mask = helper.make_node("Add", ["scores", "one"], ["masked"])
    position = list(model.graph.node).index(named(model, "softmax"))
    model.graph.node.insert(position, mask)


def softmax_of_columns(model: onnx.ModelProto) -> None:
    named(model, "softmax").attribute[0].i = 2


def values_in_another_layout(model: onnx.ModelProto) -> None:
    named(model, "transpose_v").attribute[0].ints[:] = [0, 2, 1, 3][::-1]


def joined_in_another_layout(model: onnx.ModelProto) -> None:
    named(model, "join").attribute[0].ints[:] = [0, 1, 2, 3]


def other_heads_of_values(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, constant("more_heads", [2 * HEADS]))
    named(model, "axes_v").input[2] = "more_heads"


def heads_that_are_computed(model: onnx.ModelProto) -> None:
    for name in ("q", "k", "v"):
        named(model, f"axes_{name}").input[2] = "batch_axis"


def weights_that_are_wanted(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, None))


@pytest.mark.parametrize(
    "change",
    [
        scale_and_a_half,
        scale_of_another_query,
        half_scale, scale_of_another_axis, unscaled_query, masked, softmax_of_columns,
        values_in_another_layout, joined_in_another_layout, other_heads_of_values,
        heads_that_are_computed, weights_that_are_wanted,
    ],
)  # fmt: skip
def test_what_is_not_quite_that_is_left_alone(change: Callable[[onnx.ModelProto], None]) -> None:
    model = written_out()
    change(model)
    before = model.SerializeToString()
    assert fuse_attention(model) == 0
    assert model.SerializeToString() == before


def test_what_others_read_stays(onnx_bundle: Bundle) -> None:
    model = onnx.load(str(onnx_bundle.artifact("unet").path), load_external_data=False)
    outputs = [output.name for output in model.graph.output]
    num_softmax = sum(node.op_type == "Softmax" for node in model.graph.node)
    assert fuse_attention(model) == num_softmax > 0
    made = {name for node in model.graph.node for name in node.output}
    given = {value.name for value in (*model.graph.input, *model.graph.initializer)}
    read = {name for node in model.graph.node for name in node.input if name}
    assert read <= made | given
    assert set(outputs) <= made
    assert not any(node.op_type == "Softmax" for node in model.graph.node)


def test_without_the_onnx_package_a_graph_runs_as_it_is(
    onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    artifact = onnx_bundle.artifact("vae_decoder")
    session = OnnxRuntime(settings=RuntimeSettings()).open(artifact)
    assert session.execution.details["attention"] == "not fused: onnx is not installed"
    with CheckedSession(session, artifact) as checked:  # which refuses what is not finite
        checked.run({"latents": np.zeros((1, 4, 8, 8), np.float32)})


@pytest.mark.parametrize("component", ["unet", "vae_encoder", "vae_decoder"])
def test_a_runtime_fuses_unless_it_is_told_not_to(
    component: ComponentName, onnx_bundle: Bundle
) -> None:
    artifact = onnx_bundle.artifact(component)
    cases = component_cases(component, onnx_bundle.config, input_ids=NO_TEXT)
    case = next(iter(cases))
    plain = OnnxRuntime(settings=RuntimeSettings())
    found = {}
    for name, runtime in {
        "fused": plain,
        "left out": replace(plain, disabled_optimizers=(PASS_NAME,)),
        "basic": replace(plain, graph_optimization="basic"),
    }.items():
        with CheckedSession(runtime.open(artifact), artifact) as session:
            found[name] = session.run(case.feed), session.execution.details.get("attention")
    assert [told for _, told in found.values()][1:] == [None, None]
    assert str(found["fused"][1]).endswith(" fused")
    for output, values in found["fused"][0].items():
        expected = found["left out"][0][output]
        assert math.isfinite(float(np.abs(expected).max()))
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
