"""Integer weights in ONNX graphs: what is stored, what runs, and what a fault would do."""

import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from triptych.errors import VerificationError
from triptych.exporters import make_exporter
from triptych.exporters import onnx as exporter_module
from triptych.exporters._onnx_quantization import quantize_graph
from triptych.exporters.base import ArtifactFacts, ExportSettings
from triptych.models.checkpoint import open_checkpoint
from triptych.models.precisions import export_precisions, is_compressed
from triptych.parity.metrics import rel_l2
from triptych.types import Array, ComponentName, Precision
from triptych.workflows.export_process import ExportJob, export_component

COMPRESSED = [name for name in export_precisions("onnx") if is_compressed(name)]
RANDOM = np.random.default_rng(0)

Export = Callable[[ComponentName, Precision], Path]


@pytest.fixture(scope="module")
def export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports one component in one precision, once."""
    done: dict[tuple[str, str], Path] = {}

    def run(component: ComponentName, precision: Precision) -> Path:
        if (component, precision) not in done:
            folder = tmp_path_factory.mktemp(f"{component}-{precision}")
            exporter = make_exporter("onnx", ExportSettings(precision=precision))
            opened = open_checkpoint(checkpoint)
            exporter.export(opened, component, folder, report=lambda *_: None)
            done[component, precision] = folder / component / "model.onnx"
        return done[component, precision]

    return run


def describe(path: Path) -> ArtifactFacts:
    return make_exporter("onnx").describe(path)


def node_types(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def kernels(path: Path, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return node_types(tmp_path / "optimised.onnx")


# --- what is stored ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtypes"),
    [
        ("int8", {"float32", "int8", "uint8"}),
        ("int4", {"float32", "int8", "uint4"}),
        ("int8-dynamic", {"float32", "int8"}),
    ],
)
def test_every_weight_is_counted_as_it_is_stored(
    precision: Precision, dtypes: set[str], export: Export, checkpoint: Path
) -> None:
    facts = describe(export("text_encoder_2", precision))
    assert set(facts.weight_dtypes) == dtypes
    stored = open_checkpoint(checkpoint).stored_tensors("text_encoder_2").values()
    assert facts.num_parameters == sum(math.prod(tensor.shape) for tensor in stored)
    assert facts.weight_dtypes["float32"] < 0.05 * facts.num_parameters  # biases and norms


@pytest.mark.parametrize("precision", COMPRESSED)
def test_a_compressed_graph_is_smaller(precision: Precision, export: Export) -> None:
    sizes = [export("text_encoder_2", name).stat().st_size for name in ("fp32", "int8", precision)]
    assert sizes[1] < 0.5 * sizes[0]
    assert sizes[2] <= sizes[1]


def test_four_bits_are_four_bits(export: Export) -> None:
    """Two weights to a byte, in blocks that are filled up."""
    model = onnx.load(str(export("unet", "int4")))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    blocks = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(blocks) > 50
    for node in blocks:
        facts = {one.name: one.i for one in node.attribute}
        packed = stored[node.input[1]]
        num_blocks = -(-facts["K"] // facts["block_size"])
        assert facts["bits"] == 4
        assert math.prod(packed.dims) == facts["N"] * num_blocks * facts["block_size"] // 2


def test_a_vae_that_overflows_in_half_precision_is_left_alone(export: Export) -> None:
    assert set(describe(export("vae_decoder", "int8")).weight_dtypes) == {"float32"}


def test_a_graph_keeps_its_weights_where_they_were(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Export
) -> None:
    monkeypatch.setattr(exporter_module, "EXTERNAL_DATA_BYTES", 1000)
    exporter = make_exporter("onnx", ExportSettings(precision="int4"))
    opened = open_checkpoint(checkpoint)
    exporter.export(opened, "text_encoder", tmp_path, report=lambda *_: None)
    folder = tmp_path / "text_encoder"
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "model.onnx_data"}
    inside = onnx.load(str(export("text_encoder", "int4")))
    outside = onnx.load(str(folder / "model.onnx"))  # with what lies beside it
    assert len(inside.graph.initializer) == len(outside.graph.initializer)
    for one, other in zip(inside.graph.initializer, outside.graph.initializer, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_logging_stays_the_callers(export: Export) -> None:
    """Importing ONNX Runtime's quantiser sets up logging for the whole process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    export("text_encoder", "int8")
    assert (root.handlers, root.level) == before


# --- what runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_blocks_are_multiplied_in_float32(
    precision: Precision, export: Export, tmp_path: Path
) -> None:
    path = export("unet", precision)
    assert kernels(path, tmp_path)["MatMulNBits"] >= node_types(path)["MatMulNBits"] > 50
    for node in onnx.load(str(path)).graph.node:
        if node.op_type == "MatMulNBits":
            (level,) = (one.i for one in node.attribute if one.name == "accuracy_level")
            assert level == 1


def test_dynamic_activations_are_multiplied_as_integers(export: Export, tmp_path: Path) -> None:
    path = export("unet", "int8-dynamic")
    products = node_types(path)["MatMulInteger"]
    ran = kernels(path, tmp_path)
    fused = ran["DynamicQuantizeMatMul"] + ran["MatMulIntegerToFloat"] + ran["MatMulInteger"]
    assert fused == products > 50


def test_activations_that_several_matrices_read_are_rounded_once(export: Export) -> None:
    found = node_types(export("text_encoder", "int8-dynamic"))
    assert found["DynamicQuantizeLinear"] < found["MatMulInteger"]


def test_no_product_of_bytes_overflows_on_any_processor(export: Export) -> None:
    model = onnx.load(str(export("text_encoder", "int8-dynamic")))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    factors = [node.input[1] for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert factors
    for name in factors:
        assert np.abs(numpy_helper.to_array(stored[name]).astype(np.int16)).max() == 63


def test_bfloat16_is_refused_because_the_cpu_has_no_kernel_for_it() -> None:
    """What the table says of bf16 in ONNX. Where this fails, it is to be exported."""
    ports = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, 1, 2, 2]) for name in "xwy"
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "graph", ports[:2], ports[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


# --- by hand -------------------------------------------------------------------------------------


def one_node(op_type: str, weight: Array, path: Path) -> None:
    """A graph of one node that reads one weight."""
    inputs = {
        "MatMul": (["x", "w"], [64, len(weight)]),
        "Gemm": (["x", "w"], [64, len(weight)]),
        "Conv": (["x", "w"], [1, weight.shape[1] if weight.ndim > 2 else 1, 8, 8]),
        "Gather": (["w", "x"], [3]),
    }
    names, shape = inputs[op_type]
    dtype = TensorProto.INT64 if op_type == "Gather" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def output(path: Path, feed: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (value,) = session.run(None, {"x": feed})
    found: Array = value
    return found


@pytest.mark.parametrize("precision", COMPRESSED)
@pytest.mark.parametrize(
    ("op_type", "shape"),
    [("MatMul", (72, 40)), ("Gemm", (64, 24)), ("Conv", (12, 16, 3, 3)), ("Gather", (50, 32))],
)
def test_one_node_gives_nearly_what_it_gave(
    op_type: str, shape: tuple[int, ...], precision: Precision, tmp_path: Path
) -> None:
    """Channels of very different sizes: with one scale for all, the small ones would be lost."""
    axis = 0 if op_type in ("Conv", "Gather") else 1
    sizes = np.geomspace(1e-3, 1e3, shape[axis]).astype(np.float32)
    weight = RANDOM.standard_normal(shape).astype(np.float32)
    weight *= sizes.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    feed: Array = RANDOM.standard_normal((64, shape[0])).astype(np.float32)
    if op_type == "Conv":
        feed = RANDOM.standard_normal((1, shape[1], 8, 8)).astype(np.float32)
    if op_type == "Gather":
        feed = np.array([0, 17, 49])
    path = tmp_path / "model.onnx"
    one_node(op_type, weight, path)
    expected = output(path, feed)
    quantize_graph(path, precision)
    found = output(path, feed)
    limits = {"int8": 0.02, "int8-dynamic": 0.05, "int4": 0.2}
    limit = limits[precision] if op_type == "MatMul" else 0.02
    channel = {"Conv": 1, "Gather": 0}.get(op_type, 1)
    pairs = zip(np.moveaxis(found, channel, 0), np.moveaxis(expected, channel, 0), strict=True)
    if op_type != "Gather":
        assert all(rel_l2(one, other) < limit for one, other in pairs)
    assert rel_l2(found, expected) < limit


@pytest.mark.parametrize("precision", COMPRESSED)
def test_one_product_may_follow_another(precision: Precision, tmp_path: Path) -> None:
    """No name is given twice where an output is the next one's input."""
    first, second = (RANDOM.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 64]) for name in "xz"]
    nodes = [
        helper.make_node("MatMul", [a, w], [b]) for a, w, b in (("x", "v", "y"), ("y", "w", "z"))
    ]
    weights = [numpy_helper.from_array(first, "v"), numpy_helper.from_array(second, "w")]
    graph = helper.make_graph(nodes, "graph", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    feed = RANDOM.standard_normal((8, 64)).astype(np.float32)
    quantize_graph(path, precision)
    limit = 0.3 if precision == "int4" else 0.08
    assert rel_l2(output(path, feed), feed @ first @ second) < limit


def test_a_channel_of_zeros_stays_zero(tmp_path: Path) -> None:
    weight = RANDOM.standard_normal((4, 64, 3, 3)).astype(np.float32)
    weight[1] = 0
    path = tmp_path / "model.onnx"
    one_node("Conv", weight, path)
    quantize_graph(path, "int8")
    found = output(path, RANDOM.standard_normal((1, 64, 8, 8)).astype(np.float32))
    assert np.isfinite(found).all()
    assert not found[:, 1].any()


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_doubled_scale_is_found_before_the_bundle_is_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize_and_spoil(path: Path, precision: Precision) -> None:
        quantize_graph(path, precision)
        model = onnx.load(str(path))
        name = "token_embedding.weight/scale"
        (scale,) = (one for one in model.graph.initializer if one.name.endswith(name))
        values = numpy_helper.to_array(scale).copy()
        values[-1] *= 2  # the token that fills prompts up
        scale.CopyFrom(numpy_helper.from_array(values, scale.name))
        path.write_bytes(model.SerializeToString())

    monkeypatch.setattr(exporter_module, "quantize_graph", quantize_and_spoil)
    (tmp_path / "text_encoder").mkdir()
    job = ExportJob(
        checkpoint=str(checkpoint),
        variant=None,
        component="text_encoder",
        format="onnx",
        settings=ExportSettings(precision="int8"),
        bundle=str(tmp_path),
    )
    with pytest.raises(VerificationError, match="want at most 1e-01 for int8"):
        export_component(job, report=lambda *_: None)
