"""ONNX weights that stay in the checkpoint's own safetensors files.

Engines refuse external data outside of a graph's folder, and symbolic links out of it. So the
bundle has hard links of the checkpoint's files: other names for the same bytes. A copy of the
bundle to another disk has copies of them, and stands alone.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from triptych.errors import OutputError, UsageError
from triptych.models.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import onnx

_ELEMENT_TYPES: Final = {"F32": ("FLOAT", 4), "F16": ("FLOAT16", 2)}
"""ONNX's word for a dtype of safetensors, and the bytes of an element."""

_LEAST_BYTES = 1024
"""Smaller tensors go into the graph, where shape inference can read them."""

_CONTRIB_DOMAIN = "com.microsoft"


def leave_weights_in_place(
    model: "onnx.ModelProto", stored: Mapping[str, StoredTensor], *, dtype: str, folder: Path
) -> None:
    """Make those weight inputs initializers that lie in the checkpoint in the graph's dtype.

    A matrix that is read transposed is multiplied transposed, by ONNX Runtime's FusedMatMul, which
    OpenVINO knows too: a Transpose would be a copy in memory.

    Args:
        model: the traced graph; changed in place. Weights that are made of several, or stored in
            another dtype, stay inputs.
        stored: where the weights lie.
        dtype: safetensors' word for the graph's dtype.
        folder: the graph's, which gets the links.

    Raises:
        UsageError: no weight is stored in the graph's dtype.
        OutputError: the folder cannot hold links of the checkpoint's files.
    """
    import onnx

    kind, element_bytes = _ELEMENT_TYPES[dtype]
    placed = [
        value.name
        for value in model.graph.input
        if (tensor := stored.get(value.name)) is not None
        and tensor.is_plain
        and tensor.dtype == dtype
        and math.prod(tensor.shape) * element_bytes >= _LEAST_BYTES
    ]
    if not placed:
        found = ", ".join(sorted({tensor.dtype for tensor in stored.values()}))
        raise UsageError(
            f"weights in place: got a checkpoint of {found}, want {dtype} as the graph has. Ask "
            "for the checkpoint's own --precision, or let the weights be copied."
        )
    files = sorted({stored[name].file for name in placed})
    starts = {file: _data_starts(file) for file in files}
    links = {file: _link(file, folder / file.name) for file in files}
    for name in placed:
        tensor = stored[name]
        proto = model.graph.initializer.add()
        proto.name = name
        proto.data_type = getattr(onnx.TensorProto, kind)
        proto.dims.extend(tensor.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (
            ("location", links[tensor.file].name),
            ("offset", starts[tensor.file][tensor.key]),
            ("length", math.prod(tensor.shape) * element_bytes),
        ):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
    _multiply_transposed(model, set(placed))
    kept = [value for value in model.graph.input if value.name not in set(placed)]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _data_starts(file: Path) -> dict[str, int]:
    """Where the bytes of each tensor of a safetensors file begin.

    Source:
        https://github.com/huggingface/safetensors, "Format".
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {
        key: 8 + length + entry["data_offsets"][0]
        for key, entry in header.items()
        if key != "__metadata__"
    }


def _link(file: Path, link: Path) -> Path:
    try:
        with contextlib.suppress(FileExistsError):  # an export that is resumed
            os.link(file.resolve(), link)
    except OSError as error:
        raise OutputError(
            f"{link}: could not link {file} there. {error}. Weights stay in place only on the "
            "filesystem that the checkpoint is on: write the bundle there, or let the weights be "
            "copied."
        ) from error
    return link


def _multiply_transposed(model: "onnx.ModelProto", weights: set[str]) -> None:
    """Replace Transpose of a weight, and the products that read it, by transposed products."""
    import onnx

    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    dropped = set()
    for node in model.graph.node:
        if node.op_type != "Transpose" or node.input[0] not in weights:
            continue
        products = readers.get(node.output[0], [])
        if not all(_is_product_of(reader, node.output[0]) for reader in products):
            continue
        for product in products:
            product.op_type, product.domain = "FusedMatMul", _CONTRIB_DOMAIN
            product.input[1] = node.input[0]
            product.attribute.append(onnx.helper.make_attribute("transB", 1))
        dropped.add(node.output[0])
    nodes = [node for node in model.graph.node if node.output[0] not in dropped]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(onnx.helper.make_opsetid(_CONTRIB_DOMAIN, 1))


def _is_product_of(node: "onnx.NodeProto", weight: str) -> bool:
    return node.op_type == "MatMul" and list(node.input).index(weight) == 1
