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
from triptych.dependencies import import_optional
from triptych.errors import BundleError
from triptych.runtimes._taps.base import Tap, Tapped
from triptych.runtimes._taps.by_scope import Bound, bind_by_scope
from triptych.runtimes._taps.graph import Graph, Operator, Region
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import projection, sketch_from_vector
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
        import_optional("onnx", extra="onnxruntime")
        import onnx

        try:
            model = onnx.load(str(artifact.path), load_external_data=False)
        except Exception as error:  # protobuf's errors share no base class with OSError
            raise BundleError(
                f"{artifact.path}: got {error}, want a readable ONNX graph."
            ) from error
        self._model: onnx.ModelProto = model
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
        names = {tap.value: f"{_MADE}_{number}" for number, tap in enumerate(taps)}
        for tap in taps:
            proto.node.extend(_reducers(tap, names[tap.value]))
        found = self._run(proto, feed, (*names.values(), *self.graph.outputs))
        return Tapped(
            sketches={value: sketch_from_vector(found[name]) for value, name in names.items()},
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
            "shape": np.array([matrices.left.shape[1], matrices.right.shape[0]]),
            "left": matrices.left,
            "right": matrices.right,
        }
        for part, array in arrays.items():
            yield numpy_helper.from_array(array, f"{_MADE}_{part}_{size}")


def _reducers(tap: Tap, output: str) -> "Iterator[onnx.NodeProto]":
    """Operators from a value to the vector that `sketch_from_vector` reads, in float32.

    They take a value of another shape than expected too: it is padded or cut, and its axes, which
    end the vector, tell.
    """
    from onnx import TensorProto, helper

    size = math.prod(tap.shape)
    shared = {name: f"{_MADE}_{name}" for name in ("flat", "start")}
    shared |= {
        name: f"{_MADE}_{name}_{size}" for name in ("zeros", "end", "shape", "left", "right")
    }
    to_float = {"to": TensorProto.FLOAT}
    steps: list[tuple[str, list[str], str, dict[str, int]]] = [
        ("Cast", ["value"], "wide", to_float),
        ("Reshape", ["wide", "flat"], "numbers", {}),
        ("IsNaN", ["numbers"], "is_nan", {}),
        ("IsInf", ["numbers"], "is_inf", {}),
        ("Or", ["is_nan", "is_inf"], "not_finite", {}),
        ("Cast", ["not_finite"], "each", to_float),
        ("ReduceSum", ["each"], "count", {"keepdims": 0}),
        ("Abs", ["numbers"], "sizes", {}),
        ("ReduceMax", ["sizes"], "max_abs", {"keepdims": 0}),
        ("Mul", ["numbers", "numbers"], "squares", {}),
        ("ReduceMean", ["squares"], "mean", {"keepdims": 0}),
        ("Sqrt", ["mean"], "rms", {}),
        ("Concat", ["numbers", "zeros"], "longer", {"axis": 0}),
        ("Slice", ["longer", "start", "end"], "padded", {}),
        ("Reshape", ["padded", "shape"], "matrix", {}),
        ("MatMul", ["left", "matrix"], "halfway", {}),
        ("MatMul", ["halfway", "right"], "both", {}),
        ("Reshape", ["both", "flat"], "projected", {}),
        ("Shape", ["value"], "axes", {}),
        ("Cast", ["axes"], "lengths", to_float),
        ("Reshape", ["count", "flat"], "count_1", {}),
        ("Reshape", ["max_abs", "flat"], "max_abs_1", {}),
        ("Reshape", ["rms", "flat"], "rms_1", {}),
        ("Concat", ["count_1", "max_abs_1", "rms_1", "projected", "lengths"], "", {"axis": 0}),
    ]
    names = {"value": tap.value, "": output, **shared}
    for kind, inputs, part, attributes in steps:
        sources = [names.get(name, f"{output}_{name}") for name in inputs]
        yield helper.make_node(kind, sources, [names.get(part, f"{output}_{part}")], **attributes)
