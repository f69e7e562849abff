"""Group norms of exported graphs, beside float64."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from triptych.bundle.bundle import Bundle
from triptych.exporters._onnx_group_norm import add_up_by_rows
from triptych.types import Array

EPSILON = 1e-6

Engine: TypeAlias = Callable[[bytes, Array], Array]


def constant(name: str, values: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, name))


def group_norm(
    groups: int = 32, *, rank: int = 4, scale: float = 1.0, shift: float = 0.0
) -> onnx.ModelProto:
    """As torch.onnx writes it, from `x` to `y`, but for the weights of each channel."""
    ones = np.ones(groups, np.float32)
    nodes = [
        constant("grouping", np.array([0, groups, -1])),
        helper.make_node("Reshape", ["x", "grouping"], ["grouped"]),
        constant("scale", scale * ones),
        constant("shift", shift * ones),
        helper.make_node(
            "InstanceNormalization", ["grouped", "scale", "shift"], ["normal"],
            name="/norm/InstanceNormalization", epsilon=EPSILON,
        ),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Reshape", ["normal", "shape"], ["y"]),
    ]  # fmt: skip
    axes = [f"axis_{axis}" for axis in range(rank)]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in "xy"]
    return helper.make_model(
        helper.make_graph(nodes, "norm", ports[:1], ports[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def on_onnxruntime(graph: bytes, values: Array) -> Array:
    (found,) = onnxruntime.InferenceSession(graph).run(["y"], {"x": values})
    return np.asarray(found)


def on_openvino(graph: bytes, values: Array) -> Array:
    model = openvino.Core().read_model(graph, b"")
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    return np.asarray(openvino.compile_model(model, "CPU", exactly)({"x": values})["y"])


def error_of(
    model: onnx.ModelProto, values: Array, groups: int, *, run: Engine = on_onnxruntime
) -> float:
    """Relative L2 from the same in float64."""
    onnx.checker.check_model(model)
    found = run(model.SerializeToString(), values)
    exact = values.astype(np.float64).reshape(len(values), groups, -1)
    exact -= exact.mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + EPSILON)
    difference = np.linalg.norm((found - exact.reshape(values.shape)).ravel())
    return float(difference / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 64, 9, 7), 32), ((2, 8, 3, 5), 4), ((2, 64, 77), 32)],
    ids=["odd", "two", "sequence"],
)
def test_the_same_is_computed(shape: tuple[int, ...], groups: int) -> None:
    values = np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(0.5)
    model = group_norm(groups, rank=len(shape))
    add_up_by_rows(model)
    assert all(node.op_type != "InstanceNormalization" for node in model.graph.node)
    assert error_of(model, values, groups) < 1e-6


@pytest.mark.parametrize("run", [on_onnxruntime, on_openvino])
def test_a_million_values_are_added_up_exactly(run: Engine) -> None:
    values = np.random.default_rng(0).standard_normal((1, 128, 512, 512), np.float32)
    values += np.float32(0.5)
    model = group_norm()
    before = error_of(model, values, 32, run=run)
    add_up_by_rows(model)
    assert error_of(model, values, 32, run=run) < 1e-6
    assert before > 2e-6, "the engine has become exact: this need not be done for it any more"


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (1.0, 1.0)], ids=["scaled", "shifted"])
def test_another_normalisation_is_left_alone(scale: float, shift: float) -> None:
    model = group_norm(scale=scale, shift=shift)
    before = model.SerializeToString()
    add_up_by_rows(model)
    assert model.SerializeToString() == before


def test_the_vae_alone_is_exported_so(onnx_bundle: Bundle) -> None:
    counts = {}
    for component in ("vae_encoder", "vae_decoder", "unet"):
        graph = onnx.load(onnx_bundle.artifact(component).path, load_external_data=False).graph
        kinds = [node.op_type for node in graph.node]
        counts[component] = kinds.count("InstanceNormalization"), kinds.count("ReduceMean")
    for component in ("vae_encoder", "vae_decoder"):
        normal, means = counts[component]
        assert normal == 0
        assert means
        assert means % 4 == 0
    assert counts["unet"][0] > 0
    assert counts["unet"][1] == 0
