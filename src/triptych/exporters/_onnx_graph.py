"""Reading ONNX graphs back: what they say about themselves, without their weights."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.dependencies import import_optional
from triptych.errors import BundleError
from triptych.exporters.base import ArtifactFacts
from triptych.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx

SCALES = ("/scale", "/zero_point")
"""How the names of tensors end that belong to a compressed weight."""


def describe_graph(path: Path) -> ArtifactFacts:
    """Read a graph's inputs, outputs, opset and weight dtypes.

    Raises:
        BundleError: the file is not a whole graph, or its external data is not there in full.
    """
    onnx = import_optional("onnx", extra="onnxruntime")
    model = _load_graph(path)
    _check_external_data(model, path)
    histogram = Counter[str]()
    packed = _packed_weights(model)
    for weight in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).name
        if weight.name in packed:
            dtype, size = packed[weight.name]
            histogram[dtype] += size
        elif not weight.name.endswith(SCALES):
            histogram[dtype] += math.prod(weight.dims)
    weights = {initializer.name for initializer in model.graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    return ArtifactFacts(
        inputs=tuple(_port(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_port(value) for value in model.graph.output),
        num_parameters=sum(histogram.values()),
        weight_dtypes=dict(sorted(histogram.items())),
        opset=opsets.get("", opsets.get("ai.onnx")),
    )


def _packed_weights(model: "onnx.ModelProto") -> dict[str, tuple[str, int]]:
    """Dtype and number of the weights that lie several to a byte, or in padded blocks."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            facts = {one.name: one.i for one in node.attribute}
            found[node.input[1]] = f"uint{facts['bits']}", facts["K"] * facts["N"]
    return found


def check_graph(path: Path, *, is_linked: bool = False) -> None:
    """Run ONNX's own checker on a graph and its external data.

    Args:
        path: the graph.
        is_linked: its external data is a hard link, which the checker takes for an attack: it is
            shown inputs in the place of those weights.

    Raises:
        BundleError: the graph is not valid.
    """
    onnx = import_optional("onnx", extra="onnxruntime")
    try:
        onnx.checker.check_model(_with_inputs_for_weights(path) if is_linked else str(path))
    except onnx.checker.ValidationError as error:
        raise BundleError(f"{path}: got {error}, want a valid ONNX graph.") from error


def _with_inputs_for_weights(path: Path) -> "onnx.ModelProto":
    import onnx

    model = _load_graph(path)
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    for weight in weights:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            )
        else:
            model.graph.initializer.append(weight)
    return model


def _load_graph(path: Path) -> "onnx.ModelProto":
    onnx = import_optional("onnx", extra="onnxruntime")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class with OSError
        raise BundleError(f"{path}: got {error}, want a readable ONNX graph.") from error
    # Protobuf reads a file cut between two fields, or an empty one, without complaint.
    if not model.graph.node or not model.opset_import:
        raise BundleError(f"{path}: got no nodes or no opset, want a whole ONNX graph.")
    return model


def _check_external_data(model: "onnx.ModelProto", path: Path) -> None:
    """Find external data that is missing or shorter than the graph says."""
    for weight in model.graph.initializer:
        entries = {entry.key: entry.value for entry in weight.external_data}
        if not entries:
            continue
        file = path.parent / entries["location"]
        wanted = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
        size = file.stat().st_size if file.is_file() else -1
        if size < wanted:
            actual = "no such file" if size < 0 else f"{size} bytes"
            raise BundleError(
                f"{file}: got {actual}, want at least {wanted} bytes for weight {weight.name!r}. "
                "Copy the bundle again, or export it again."
            )


def _port(value: "onnx.ValueInfoProto") -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        shape=tuple(
            axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?"
            for axis in tensor.shape.dim
        ),
    )
