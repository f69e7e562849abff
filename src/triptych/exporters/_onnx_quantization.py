"""Weights of an exported ONNX graph as integers, one tensor at a time.

Matrices become ONNX Runtime's block-wise MatMulNBits, or MatMulInteger where activations are to be
rounded too; convolutions, embeddings and the few Gemm keep 8 bits a weight and one scale a channel.
Biases, norms and what leads to sinusoids stay as they are.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, final

import numpy as np

from triptych.dependencies import import_optional
from triptych.models.precisions import ONNX_BLOCK, ONNX_BLOCK_INT4
from triptych.types import Array, Precision

if TYPE_CHECKING:
    import onnx

_DOMAIN = "com.microsoft"
_SMALLEST_BLOCK = 16  # MatMulNBits takes no smaller one
_FLOAT32_ACTIVATIONS = 1  # MatMulNBits' accuracy_level; at 4 it rounds activations to int8
_SMALLEST_WEIGHT = 1024  # elements: what smaller ones would spare is not worth a node

_LARGEST = 127
_LARGEST_OF_7_BITS = 63
"""x86 processors without VNNI add two products of unsigned and signed bytes in 16 bits, which
overflow with larger ones. Source: ONNX Runtime, "Quantize ONNX models", reduce_range."""

_SMALL_TENSOR_BYTES = 1024
_ALIGNMENT_BYTES = 4096


def quantize_graph(path: Path, precision: Precision) -> None:
    """Rewrite a graph, and its external weights where it has such, with integer weights.

    Beside a graph that keeps its weights elsewhere, one of them is in memory at a time.

    Args:
        path: model.onnx, in float32.
        precision: int8, int4 or int8-dynamic.
    """
    onnx = import_optional("onnx", extra="onnxruntime")
    model = onnx.load(str(path), load_external_data=False)
    locations = {_external(tensor)["location"] for tensor in model.graph.initializer} - {""}
    rewriter = _Rewriter(model=model, folder=path.parent, precision=precision)
    if not locations:
        _rewrite(rewriter)
    else:
        (name,) = locations
        written = path.with_name(f".{name}")
        with written.open("wb") as stream:
            _rewrite(replace(rewriter, stream=stream, location=name))
        written.replace(path.with_name(name))
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    path.write_bytes(model.SerializeToString())


def _rewrite(rewriter: "_Rewriter") -> None:
    model = rewriter.model
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    readers = Counter(name for node in nodes for name in node.input)
    del model.graph.initializer[:]
    del model.graph.node[:]
    for node in nodes:
        name = _weight_name(node)
        if name in stored and readers[name] == 1 and _is_worth_it(stored[name]):
            model.graph.node.extend(rewriter.replacement(node, stored.pop(name)))
        else:
            model.graph.node.append(node)
    for tensor in stored.values():
        rewriter.add(tensor.name, rewriter.load(tensor))


def _weight_name(node: "onnx.NodeProto") -> str:
    """The input that would be a weight, if it is one."""
    places = {"Gather": 0, "MatMul": 1, "Gemm": 1, "Conv": 1}
    place = places.get(node.op_type)
    return "" if place is None else str(node.input[place])


def _is_worth_it(tensor: "onnx.TensorProto") -> bool:
    """Whether it is a matrix or more, of floats, and not small."""
    import onnx

    is_float = tensor.data_type == onnx.TensorProto.FLOAT
    return is_float and len(tensor.dims) > 1 and math.prod(tensor.dims) >= _SMALLEST_WEIGHT


def _external(tensor: "onnx.TensorProto") -> dict[str, str]:
    """Where a tensor's elements are, beside the graph; no location for those inside it."""
    return {"location": "", **{entry.key: entry.value for entry in tensor.external_data}}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Rewriter:
    """Replaces nodes, and adds what they read.

    Attributes:
        model: gets the new weights.
        folder: of the old graph's external weights.
        precision: int8, int4 or int8-dynamic.
        stream: gets the weights' elements; None keeps them in the graph.
        location: what its file will be called.
        rounded: activations that are rounded already, by name.
    """

    model: "onnx.ModelProto"
    folder: Path
    precision: Precision
    stream: BinaryIO | None = None
    location: str = ""
    rounded: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def replacement(
        self, node: "onnx.NodeProto", tensor: "onnx.TensorProto"
    ) -> "list[onnx.NodeProto]":
        """The nodes that do what one did, with an integer weight."""
        weight = self.load(tensor)
        if node.op_type == "Gather":
            return self._gathered(node, weight)
        if node.op_type != "MatMul":
            return self._widened(node, weight)
        if self.precision == "int8-dynamic":
            return self._rounded_product(node, weight)
        return self._blocks(node, weight)

    def load(self, tensor: "onnx.TensorProto") -> Array:
        """A weight's elements, mapped where they are outside the graph."""
        import onnx

        place = _external(tensor)
        if not place["location"]:
            inside: Array = onnx.numpy_helper.to_array(tensor)
            return inside
        mapped: Array = np.memmap(
            self.folder / place["location"],
            dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type),
            mode="r",
            offset=int(place["offset"]),
            shape=tuple(tensor.dims),
        )
        return mapped

    def add(self, name: str, array: Array) -> str:
        """Store a weight, and give its name back."""
        import onnx

        if self.stream is None or array.nbytes < _SMALL_TENSOR_BYTES:
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            return name
        proto = self.model.graph.initializer.add()
        proto.name = name
        proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.dims.extend(array.shape)
        offset = -(-self.stream.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.stream.seek(offset)
        self.stream.write(np.ascontiguousarray(array).data)
        proto.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": self.location, "offset": offset, "length": array.nbytes}
        for key, value in entries.items():
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
        return name

    def _blocks(self, node: "onnx.NodeProto", weight: Array) -> "list[onnx.NodeProto]":
        """A product with a matrix in blocks of 4 or 8 bits, computed in float32."""
        from onnx import helper

        bits = 4 if self.precision == "int4" else 8
        block = _block_size(len(weight), ONNX_BLOCK_INT4 if bits == 4 else ONNX_BLOCK)
        name = node.input[1]
        packed, scale, zero_point = _quantizer(bits, block)(np.ascontiguousarray(weight))
        return [
            helper.make_node(
                "MatMulNBits",
                [
                    node.input[0],
                    self.add(name, packed),
                    self.add(f"{name}/scale", scale),
                    self.add(f"{name}/zero_point", zero_point),
                ],
                node.output,
                name=node.name,
                domain=_DOMAIN,
                K=weight.shape[0],
                N=weight.shape[1],
                bits=bits,
                block_size=block,
                accuracy_level=_FLOAT32_ACTIVATIONS,
            )
        ]

    def _rounded_product(self, node: "onnx.NodeProto", weight: Array) -> "list[onnx.NodeProto]":
        """A product of integers: activations are rounded by their extremes at every run."""
        from onnx import TensorProto, helper

        source, name = node.input
        nodes = []
        if source not in self.rounded:
            self.rounded[source] = (f"{source}/rounded", f"{source}/step", f"{source}/zero")
            nodes.append(helper.make_node("DynamicQuantizeLinear", [source], self.rounded[source]))
        rounded, step, zero = self.rounded[source]
        integers, scale = _by_channel(weight, axis=1, largest=_LARGEST_OF_7_BITS)
        self.add(name, integers)
        self.add(f"{name}/scale", scale)
        (output,) = node.output
        return [
            *nodes,
            helper.make_node("MatMulInteger", [rounded, name, zero], [f"{output}/integers"]),
            helper.make_node(
                "Cast", [f"{output}/integers"], [f"{output}/floats"], to=TensorProto.FLOAT
            ),
            helper.make_node("Mul", [step, f"{name}/scale"], [f"{output}/scale"]),
            helper.make_node("Mul", [f"{output}/floats", f"{output}/scale"], [output]),
        ]

    def _widened(self, node: "onnx.NodeProto", weight: Array) -> "list[onnx.NodeProto]":
        """A convolution or a Gemm that reads a weight of 8 bits, one scale an output channel."""
        from onnx import helper

        name = node.input[1]
        is_transposed = any(one.name == "transB" and one.i for one in node.attribute)
        axis = 0 if node.op_type == "Conv" or is_transposed else 1
        integers, scale = _by_channel(weight, axis=axis, largest=_LARGEST)
        source = [self.add(name, integers), self.add(f"{name}/scale", scale)]
        node.input[1] = f"{name}/widened"
        return [
            helper.make_node("DequantizeLinear", source, [f"{name}/widened"], axis=axis),
            node,
        ]

    def _gathered(self, node: "onnx.NodeProto", weight: Array) -> "list[onnx.NodeProto]":
        """An embedding: rows of 8 bits are chosen first, and only those are widened."""
        from onnx import TensorProto, helper

        name, ids = node.input
        (output,) = node.output
        integers, scale = _by_channel(weight, axis=0, largest=_LARGEST)
        self.add(name, integers)
        self.add(f"{name}/scale", scale.reshape(-1, 1))
        return [
            helper.make_node("Gather", [name, ids], [f"{output}/integers"], axis=0),
            helper.make_node(
                "Cast", [f"{output}/integers"], [f"{output}/floats"], to=TensorProto.FLOAT
            ),
            helper.make_node("Gather", [f"{name}/scale", ids], [f"{output}/scale"], axis=0),
            helper.make_node("Mul", [f"{output}/floats", f"{output}/scale"], [output]),
        ]


def _block_size(length: int, wanted: int) -> int:
    """A block no longer than the matrix needs; lengths are powers of two."""
    block = wanted
    while block > max(length, _SMALLEST_BLOCK):
        block //= 2
    return block


def _by_channel(weight: Array, *, axis: int, largest: int) -> tuple[Array, Array]:
    """A weight as int8, symmetric, and one scale for each index of an axis."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.abs(weight).max(axis=others) / np.float32(largest)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    integers = np.clip(np.rint(weight / scale.reshape(shape)), -largest, largest)
    return integers.astype(np.int8), scale


def _quantizer(bits: int, block: int) -> Callable[[Array], tuple[Array, Array, Array]]:
    """ONNX Runtime's own, for one matrix: packed integers, scales and zero points."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    root.handlers[:] = handlers  # importing it sets up logging for the whole process
    root.setLevel(level)
    settings = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=False, bits=bits)
    quantize: Callable[[Array], tuple[Array, Array, Array]] = DefaultWeightOnlyQuantizer(
        settings
    ).qbits_block_quant
    return quantize
