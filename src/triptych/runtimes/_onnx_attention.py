"""Attention in one operator, which ONNX Runtime computes without the matrix of all scores.

torch.onnx writes scaled_dot_product_attention out: two products around a Softmax. At 1024x1024 the
scores of SDXL's outer level alone are 1.3 GB in float32. ONNX Runtime has an operator for the
whole, com.microsoft.MultiHeadAttention, but no pass that finds it in such a graph:

    Softmax((q · sqrt(scale)) @ (kᵀ · sqrt(scale))) @ v,    scale = 1 / sqrt(channels of a head)

Here it is found and replaced, in a graph that is about to be opened. What is not understood is
left as it is: attention with a mask (the text encoders'), another scale, another layout.

Source:
    torch/onnx/symbolic_opset14.py, scaled_dot_product_attention; and
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from triptych.runtimes._onnx_reading import names_read

if TYPE_CHECKING:
    import onnx

PASS_NAME = "MultiHeadAttentionFusion"  # noqa: S105  a name among those of ONNX Runtime's passes
_DOMAIN = "com.microsoft"
_HEADS_FIRST = [0, 2, 1, 3]
_TRANSPOSED_HEADS_FIRST = [0, 2, 3, 1]
_HEADS_AXIS = 2


def fuse_attention(model: "onnx.ModelProto") -> int:
    """Replace attention by MultiHeadAttention and drop what nothing reads any more.

    Args:
        model: changed in place; its weights are not read.

    Returns:
        How many there are.
    """
    import onnx

    graph = _Graph.of(model)
    found = [
        attention
        for node in model.graph.node
        if node.op_type == "Softmax" and (attention := graph.attention(node)) is not None
    ]
    if not found:
        return 0
    fused = {attention.output: attention for attention in found}
    nodes = []
    for node in model.graph.node:
        attention = fused.get(node.output[0]) if node.output else None
        if attention is None:
            nodes.append(node)
            continue
        nodes.append(
            onnx.helper.make_node(
                "MultiHeadAttention",
                [attention.query, attention.key, attention.value],
                [attention.output],
                name=f"{node.name}/MultiHeadAttention",
                domain=_DOMAIN,
                num_heads=attention.num_heads,
            )
        )
    kept = _read_nodes(nodes, [value.name for value in model.graph.output])
    del model.graph.node[:]
    model.graph.node.extend(kept)
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    return len(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """One attention, by the names of its values, each [batch, length, channels]."""

    query: str
    key: str
    value: str
    output: str
    num_heads: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A value, [batch, length, channels], whose channels are split into heads."""

    name: str
    num_heads: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """A graph, with who makes and who reads each value, and the small constants in it."""

    makers: "Mapping[str, onnx.NodeProto]"
    readers: "Mapping[str, Sequence[onnx.NodeProto]]"
    initializers: "Mapping[str, onnx.TensorProto]"
    outputs: frozenset[str]

    @staticmethod
    def of(model: "onnx.ModelProto") -> "_Graph":
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in names_read(node):
                readers.setdefault(name, []).append(node)
        return _Graph(
            makers={name: node for node in model.graph.node for name in node.output},
            readers=readers,
            initializers={weight.name: weight for weight in model.graph.initializer},
            outputs=frozenset(value.name for value in model.graph.output),
        )

    def attention(self, softmax: "onnx.NodeProto") -> _Attention | None:
        """The attention around a Softmax, or None where it is not quite the one above."""
        scores = self._made_by(softmax.input[0], "MatMul")
        mixed = self._only_reader(softmax.output[0], "MatMul")
        if scores is None or mixed is None or _axis(softmax) not in (-1, 3):
            return None
        scaled = [self._made_by(name, "Mul") for name in scores.input]
        heads_first = self._only_reader(mixed.output[0], "Transpose")
        if heads_first is None or None in scaled:
            return None
        (query, query_factor), (key, key_factor) = (product.input for product in scaled if product)
        if not all(self._is_root_of_scale(name, query) for name in (query_factor, key_factor)):
            return None
        joined = self._only_reader(heads_first.output[0], "Reshape")
        if joined is None or _permutation(heads_first) != _HEADS_FIRST:
            return None
        queries = self._split_heads(query, _HEADS_FIRST)
        keys = self._split_heads(key, _TRANSPOSED_HEADS_FIRST)
        values = self._split_heads(mixed.input[1], _HEADS_FIRST)
        if queries is None or keys is None or values is None:
            return None
        if len({split.num_heads for split in (queries, keys, values)}) > 1:
            return None
        if len(self._axes(joined.input[1])) != len("BLC"):
            return None
        return _Attention(
            query=queries.name,
            key=keys.name,
            value=values.name,
            output=joined.output[0],
            num_heads=queries.num_heads,
        )

    def _made_by(self, name: str, kind: str) -> "onnx.NodeProto | None":
        node = self.makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _only_reader(self, name: str, kind: str) -> "onnx.NodeProto | None":
        nodes = self.readers.get(name, ())
        alone = len(nodes) == 1 and nodes[0].op_type == kind and name not in self.outputs
        return nodes[0] if alone else None

    def _is_root_of_scale(self, name: str, query: str) -> bool:
        """Whether a value is sqrt(1 / sqrt(last axis of the query)), whatever it is cast to."""
        root = self._made_by(self._uncast(name), "Sqrt")
        scale = root and self._made_by(self._uncast(root.input[0]), "Div")
        width_root = scale and self._made_by(self._uncast(scale.input[1]), "Sqrt")
        width = width_root and self._made_by(self._uncast(width_root.input[0]), "Slice")
        shape = width and self._made_by(width.input[0], "Shape")
        if not (scale and width and shape):
            return False
        return (
            self._constant(scale.input[0]) == [1]
            and self._constant(width.input[1]) == [-1]
            and shape.input[0] == query
        )

    def _uncast(self, name: str) -> str:
        while (cast := self._made_by(name, "Cast")) is not None:
            name = cast.input[0]
        return name

    def _split_heads(self, name: str, permutation: list[int]) -> "_Split | None":
        """What is split into heads and transposed so."""
        transposed = self._made_by(name, "Transpose")
        if transposed is None or _permutation(transposed) != permutation:
            return None
        split = self._made_by(transposed.input[0], "Reshape")
        if split is None:
            return None
        axes = self._axes(split.input[1])
        num_heads = axes[_HEADS_AXIS] if len(axes) == len("BLHC") else None
        return None if num_heads is None else _Split(name=split.input[0], num_heads=num_heads)

    def _axes(self, name: str) -> list[int | None]:
        """The axes that a Reshape is given; None for those that are computed."""
        joined = self._made_by(name, "Concat")
        if joined is None:
            return self._integers(name)
        axes: list[int | None] = []
        for part in joined.input:
            unsqueezed = self._made_by(part, "Unsqueeze")
            axes += self._integers(unsqueezed.input[0] if unsqueezed else part) or [None]
        return axes

    def _integers(self, name: str) -> list[int | None]:
        """A constant's values as lengths; none where it is no constant."""
        return [int(value) for value in self._constant(name)]

    def _constant(self, name: str) -> list[float]:
        """A constant's values; none where it is no constant, or not in the graph."""
        import onnx

        constant = self._made_by(name, "Constant")
        proto = constant.attribute[0].t if constant else self.initializers.get(name)
        if proto is None or proto.external_data:
            return []
        return [float(value) for value in onnx.numpy_helper.to_array(proto).reshape(-1)]


def _permutation(transpose: "onnx.NodeProto") -> list[int]:
    return [axis for attribute in transpose.attribute for axis in attribute.ints]


def _axis(softmax: "onnx.NodeProto") -> int:
    return next((attribute.i for attribute in softmax.attribute), -1)


def _read_nodes(
    nodes: "Sequence[onnx.NodeProto]", outputs: Iterable[str]
) -> "list[onnx.NodeProto]":
    """The nodes that the outputs depend on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(names_read(node))
            kept.append(node)
    return kept[::-1]
