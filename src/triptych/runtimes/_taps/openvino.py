"""Taps in an OpenVINO network, compiled for the device with the runtime's own settings."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from triptych.bundle.bundle import Artifact
from triptych.errors import BackendError
from triptych.runtimes._taps.base import Tap, Tapped
from triptych.runtimes._taps.by_scope import Bound, bind_by_scope
from triptych.runtimes._taps.graph import Graph, Operator, Region
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import Sketch, projection, sketch
from triptych.runtimes._taps.trace import Trace
from triptych.runtimes.openvino import OpenVino
from triptych.types import Array, TensorMap

if TYPE_CHECKING:
    import openvino

_SPLIT_OFF = "/WithoutBiases"
"""What OpenVINO adds to the name of an operator whose bias it made an operator of its own."""

_NO_STEPS = ("Constant", "Parameter", "Result")


@final
class OpenVinoTapper:
    """One network. Every run compiles a copy of it that has the taps as outputs.

    Values are named after what computes them; those at the border as the artifact names them.
    """

    def __init__(self, runtime: OpenVino, artifact: Artifact) -> None:
        """Read the network.

        Raises:
            BundleError: OpenVINO cannot read it.
        """
        self._runtime = runtime
        self._artifact = artifact
        bindings = artifact.bindings
        self._border = {each.artifact_name for each in (*bindings.inputs, *bindings.outputs)}
        self._model = runtime.read(artifact)

    @property
    def shows_all(self) -> bool:
        """Taps keep the engine from fusing operators, and take memory."""
        return False

    @cached_property
    def graph(self) -> Graph:
        """The network as the file says it."""
        operators = [
            Operator(
                name=node.get_friendly_name(),
                type=node.get_type_name(),
                inputs=tuple(map(self._name, node.input_values())),
                outputs=tuple(map(self._name, node.outputs())),
                names=tuple(_telling_names(node)),
            )
            for node in self._model.get_ordered_ops()
            if node.get_type_name() not in _NO_STEPS
        ]
        return Graph(
            tuple(map(self._name, self._model.inputs)),
            tuple(self._name(result.input_value(0)) for result in self._model.get_results()),
            tuple(operators),
        )

    def bind(self, trace: Trace, names: ParameterNames) -> tuple[Bound, ...]:
        """Pair by the scopes that tracers left in names."""
        return bind_by_scope(self.graph, trace, names.prefix)

    def measure(self, feed: TensorMap, taps: Sequence[Tap]) -> Tapped:
        """Run the network with operators behind each tapped value that reduce it to a sketch.

        Told to compute in less than float32, the engine would do so in these operators too; then
        the values are given whole, and measured outside.
        """
        model = self._model.clone()
        ports = self._ports(model)
        sources = [ports[tap.value] for tap in taps]
        if self._runtime.settings.precision not in (None, "fp32"):
            outputs, found = self._run(model, feed, sources)
            sketches = [sketch(array) for array in found]
        else:
            reduced = [
                port
                for source, tap in zip(sources, taps, strict=True)
                for port in _reduced(source, tap)
            ]
            outputs, found = self._run(model, feed, reduced)
            sketches = [
                Sketch(shape=tuple(map(int, shape)), projected=projected)
                for projected, shape in zip(found[::2], found[1::2], strict=True)
            ]
        return Tapped(
            sketches={tap.value: seen for tap, seen in zip(taps, sketches, strict=True)},
            outputs=dict(zip(self.graph.outputs, outputs, strict=True)),
        )

    def fetch(self, feed: TensorMap, taps: Sequence[Tap]) -> dict[str, Array]:
        """Run the network with the values as outputs."""
        model = self._model.clone()
        ports = self._ports(model)
        values = [tap.value for tap in taps]
        _, found = self._run(model, feed, [ports[value] for value in values])
        return dict(zip(values, found, strict=True))

    def compute(
        self, region: Region, given: Mapping[str, Array], outputs: Sequence[str], feed: TensorMap
    ) -> dict[str, Array]:
        """Run a network of the region's nodes alone."""
        from openvino import Model, Type, opset13

        model = self._model.clone()
        ports = self._ports(model)
        for result in model.get_results():
            model.remove_result(result)
        sources = {*region.inputs, *region.shape_inputs}
        fed = {name: feed[name] for name in self.graph.inputs if name in sources}
        parameters = [ports[name].get_node() for name in fed]
        wanted = [ports[value] for value in outputs]
        for value, array in given.items():
            parameter = opset13.parameter(array.shape, Type(array.dtype), name=value)
            parameter.output(0).get_tensor().set_names({value})
            for reader in ports[value].get_target_inputs():
                reader.replace_source_output(parameter.output(0))
            parameters.append(parameter)
        part = Model([opset13.result(port) for port in wanted], parameters)
        found, _ = self._run(part, {**fed, **given}, [])
        return dict(zip(outputs, found, strict=True))

    def _run(
        self, model: "openvino.Model", feed: TensorMap, more: "Sequence[openvino.Output]"
    ) -> tuple[list[Array], list[Array]]:
        """Run a network: what it gives, and what these values of it are."""
        from openvino import opset13

        num_results = len(model.get_results())
        model.add_results([opset13.result(port) for port in more])
        compiled = self._runtime.compile(model, self._artifact)
        try:
            found = compiled(dict(feed))
        except RuntimeError as error:
            raise BackendError(f"openvino: could not run the network. {error}") from error
        arrays = [np.array(found[port]) for port in compiled.outputs]
        return arrays[:num_results], arrays[num_results:]

    def _ports(self, model: "openvino.Model") -> "dict[str, openvino.Output]":
        return {
            self._name(port): port
            for node in model.get_ordered_ops()
            if node.get_type_name() != "Result"
            for port in node.outputs()
        }

    def _name(self, port: "openvino.Output") -> str:
        border = sorted(self._border.intersection(port.get_names()))
        if border:
            return border[0]
        name: str = port.get_node().get_friendly_name()
        return name if port.get_node().get_output_size() == 1 else f"{name}:{port.get_index()}"


def _telling_names(node: "openvino.Node") -> Iterator[str]:
    """A node's name and its values', where a tracer gave them."""
    if "/" in node.get_friendly_name():
        yield node.get_friendly_name()
    for source in node.input_values():
        whole, split, _ = source.get_node().get_friendly_name().rpartition(_SPLIT_OFF)
        if split:
            yield whole
    for port in node.outputs():
        yield from sorted(port.get_names())


def _reduced(port: "openvino.Output", tap: Tap) -> "tuple[openvino.Output, openvino.Output]":
    """Operators from a value to its sketch, in float32, and to its shape.

    They take a value of another shape than expected too: it is padded or cut, and the shape tells.
    """
    from openvino import opset13 as ops

    matrices = projection(math.prod(tap.shape))
    zeros = np.zeros(matrices.padded_size, np.float32)
    flat = ops.reshape(ops.convert(port, "f32"), [-1], special_zero=False)
    padded = ops.slice(ops.concat([flat, ops.constant(zeros)], 0), [0], [zeros.size], [1])
    middle = ops.reshape(padded, list(matrices.matrix_shape), special_zero=False)
    half = ops.matmul(ops.constant(matrices.left), middle, False, False)
    projected = ops.matmul(half, ops.constant(matrices.right), False, False)
    return projected.output(0), ops.shape_of(port).output(0)
