"""A known defect, made on purpose in an exported file, to be recognised in others.

`openvino.save_model` by default, and ONNX Runtime's float16 converter, round every constant to half
precision: also the frequencies of which the U-Net takes the sine of the timestep and of the sizes.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np

from triptych.errors import UsageError
from triptych.types import Array, FormatName

if TYPE_CHECKING:
    import onnx


def round_sinusoids(path: Path, artifact_format: FormatName) -> int:
    """Round the frequencies of a file's sinusoids to float16; they stay stored as float32.

    Args:
        path: of an artifact that triptych exported. Changed in place, its size stays.
        artifact_format: onnx or openvino.

    Returns:
        How many tables of frequencies it has.

    Raises:
        UsageError: another format.
    """
    if artifact_format not in _ROUNDERS:
        raise UsageError(
            f"{path}: got a file in {artifact_format} format, want {' or '.join(_ROUNDERS)}."
        )
    return _ROUNDERS[artifact_format](path)


def _round_onnx(path: Path) -> int:
    import onnx

    model = onnx.load(path, load_external_data=False)
    tables = list(_onnx_tables(model))
    for table in tables:
        table.raw_data = _rounded(onnx.numpy_helper.to_array(table)).tobytes()
    path.write_bytes(model.SerializeToString())
    return len(tables)


def _onnx_tables(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """What a sine's or cosine's argument is multiplied by."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    arguments = {node.input[0] for node in model.graph.node if node.op_type in ("Sin", "Cos")}
    for argument in sorted(arguments):
        for name in made_by[argument].input:
            source = made_by.get(name)
            if source is not None and source.op_type == "Constant":
                yield source.attribute[0].t


def _round_openvino(path: Path) -> int:
    """Through the XML: the file of weights is changed where the tables lie, and not read."""
    tree = ET.parse(path)  # noqa: S314  it was exported just now
    layers = {layer.get("id", ""): layer for layer in tree.iter("layer")}
    sources: dict[str, list[str]] = {}
    for edge in tree.iter("edge"):
        sources.setdefault(edge.get("to-layer", ""), []).append(edge.get("from-layer", ""))
    products = {
        source
        for number, layer in layers.items()
        if layer.get("type") in ("Sin", "Cos")
        for source in sources[number]
    }
    tables = {
        number
        for product in products
        for number in sources[product]
        if layers[number].get("type") == "Const"
    }
    with path.with_suffix(".bin").open("r+b") as weights:
        for number in tables:
            place = layers[number].find("data")
            assert place is not None  # noqa: S101  every constant has its data
            offset, size = int(place.get("offset", "")), int(place.get("size", ""))
            weights.seek(offset)
            values = np.frombuffer(weights.read(size), np.float32)
            weights.seek(offset)
            weights.write(_rounded(values).tobytes())
    return len(tables)


def _rounded(values: Array) -> Array:
    rounded: Array = values.astype(np.float16).astype(np.float32)
    return rounded


_ROUNDERS: Mapping[FormatName, Callable[[Path], int]] = {
    "onnx": _round_onnx,
    "openvino": _round_openvino,
}
