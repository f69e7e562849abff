"""Taps in an ONNX graph, run by ONNX Runtime with the runtime's own settings.

A tapped graph is the artifact's own with more outputs. It is handed to the engine from memory, so
that weights beside the graph stay where they are.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from triptych.bundle.bundle import Artifact
from triptych.runtimes._onnx_reading import read_graph
from triptych.runtimes._taps.base import Tap, Tapped
from triptych.runtimes._taps.by_scope import Bound, bind_by_scope
from triptych.runtimes._taps.graph import Graph, Operator, Region
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import Sketch, projection
from triptych.runtimes._taps.trace import Trace
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.types import Array, TensorMap

if TYPE_CHECKING:
    import onnx

_MADE = "triptych_tap"


@final
class OnnxRuntimeTapper:
    """One ONNX graph. Every run is a session of its own, on a graph with the taps in it."""

    def __init__(self, runtime: OnnxRuntime, artifact: Artifact) -> None:
        """Read the graph; external weights are not read.

        Raises:
            BundleError: the file is not a whole graph.
        """
        self._model = read_graph(artifact.path)
        self._runtime = runtime
        self._artifact = artifact

    @property
    def shows_all(self) -> bool:
        """Taps keep the engine from fusing operators, and take memory."""
        return False

    @cached_property
    def graph(self) -> Graph:
        """The graph as the file says it."""
        proto = self._model.graph
        weights = {weight.name for weight in proto.initializer}
        return Graph(
            tuple(value.name for value in proto.input if value.name not in weights),
            tuple(value.name for value in proto.output),
            tuple(map(_operator, proto.node)),
        )

    def bind(self, trace: Trace, names: ParameterNames) -> tuple[Bound, ...]:
        """Pair by the scopes that the tracer left in names."""
        return bind_by_scope(self.graph, trace, names.prefix)

    def measure(self, feed: TensorMap, taps: Sequence[Tap]) -> Tapped:
        """Run the graph with operators behind each tapped value that reduce it to a sketch."""
        proto = self._copied()
        proto.initializer.extend(_matrices(taps))
        names = {
            tap.value: (f"{_MADE}_{number}", f"{_MADE}_{number}_shape")
            for number, tap in enumerate(taps)
        }
        for tap in taps:
            proto.node.extend(_reducers(tap, *names[tap.value]))
        made = [name for pair in names.values() for name in pair]
        found = self._run(proto, feed, (*made, *self.graph.outputs))
        return Tapped(
            sketches={
                value: Sketch(shape=tuple(map(int, found[shape])), projected=found[projected])
                for value, (projected, shape) in names.items()
            },
            outputs={name: found[name] for name in self.graph.outputs},
        )

    def fetch(self, feed: TensorMap, taps: Sequence[Tap]) -> dict[str, Array]:
        """Run the graph with the values as outputs."""
        return self._run(self._copied(), feed, [tap.value for tap in taps])

    def compute(
        self, region: Region, given: Mapping[str, Array], outputs: Sequence[str], feed: TensorMap
    ) -> dict[str, Array]:
        """Run a graph of the region's nodes; constants are handed on by an Identity."""
        import onnx

        steps = (*region.constant_operators, *region.operators)
        wanted = {operator.outputs for operator in steps}
        fed = {name: feed[name] for name in self.graph.inputs if name in _sources(region)}
        fed |= given
        made = {output: f"{_MADE}_{number}" for number, output in enumerate(outputs)}
        proto = onnx.GraphProto(name="region")
        proto.node.extend(node for node in self._model.graph.node if tuple(node.output) in wanted)
        proto.node.extend(
            onnx.helper.make_node("Identity", [output], [name]) for output, name in made.items()
        )
        proto.initializer.extend(
            weight for weight in self._model.graph.initializer if weight.name in region.constants
        )
        proto.input.extend(
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in fed.items()
        )
        found = self._run(proto, fed, made.values())
        return {output: found[name] for output, name in made.items()}

    def _copied(self) -> "onnx.GraphProto":
        import onnx

        proto = onnx.GraphProto()
        proto.CopyFrom(self._model.graph)
        return proto

    def _run(
        self, proto: "onnx.GraphProto", feed: TensorMap, outputs: Iterable[str]
    ) -> dict[str, Array]:
        """Run a graph with these outputs. Their types are left to the engine to infer."""
        import onnx

        wanted = tuple(dict.fromkeys(outputs))
        del proto.output[:]
        proto.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        model = onnx.ModelProto(
            ir_version=self._model.ir_version,
            opset_import=self._model.opset_import,
            functions=self._model.functions,
            graph=proto,
        )
        session = self._runtime.open_graph(model.SerializeToString(), self._artifact)
        try:
            return session.run(feed, wanted)
        finally:
            session.close()


def _operator(node: "onnx.NodeProto") -> Operator:
    return Operator(
        name=node.name or node.output[0],
        type=node.op_type,
        inputs=tuple(name for name in node.input if name),
        outputs=tuple(name for name in node.output if name),
        names=tuple(name for name in (node.name, *node.output) if name),
    )


def _sources(region: Region) -> set[str]:
    return {*region.inputs, *region.shape_inputs}


def _matrices(taps: Iterable[Tap]) -> "Iterator[onnx.TensorProto]":
    """What the reducers multiply by and reshape to; shared by values of one size."""
    from onnx import numpy_helper

    yield numpy_helper.from_array(np.array([-1]), f"{_MADE}_flat")
    yield numpy_helper.from_array(np.array([0]), f"{_MADE}_start")
    for size in sorted({math.prod(tap.shape) for tap in taps}):
        matrices = projection(size)
        arrays = {
            "zeros": np.zeros(matrices.padded_size, np.float32),
            "end": np.array([matrices.padded_size]),
            "shape": np.array(matrices.matrix_shape),
            "left": matrices.left,
            "right": matrices.right,
        }
        for part, array in arrays.items():
            yield numpy_helper.from_array(array, f"{_MADE}_{part}_{size}")


def _reducers(tap: Tap, projected: str, shape: str) -> "Iterator[onnx.NodeProto]":
    """Operators from a value to its sketch, in float32, and to its shape.

    They take a value of another shape than expected too: it is padded or cut, and the shape tells.
    As few as can be: the engine's start grows faster than their number.
    """
    from onnx import TensorProto, helper

    def matrix(part: str) -> str:
        return f"{_MADE}_{part}_{math.prod(tap.shape)}"

    def inner(part: str) -> str:
        return f"{projected}_{part}"

    wide, flat, longer, padded, middle, half = map(
        inner, ("wide", "flat", "longer", "padded", "middle", "half")
    )
    yield helper.make_node("Cast", [tap.value], [wide], to=TensorProto.FLOAT)
    yield helper.make_node("Reshape", [wide, f"{_MADE}_flat"], [flat])
    yield helper.make_node("Concat", [flat, matrix("zeros")], [longer], axis=0)
    yield helper.make_node("Slice", [longer, f"{_MADE}_start", matrix("end")], [padded])
    yield helper.make_node("Reshape", [padded, matrix("shape")], [middle])
    yield helper.make_node("MatMul", [matrix("left"), middle], [half])
    yield helper.make_node("MatMul", [half, matrix("right")], [projected])
    yield helper.make_node("Shape", [tap.value], [shape])
