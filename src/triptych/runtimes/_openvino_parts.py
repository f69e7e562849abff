"""An OpenVINO network part by part: see `_parts.py`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from triptych.errors import BackendError
from triptych.runtimes._parts import Part, PartsSession, Step, cut, is_shape
from triptych.runtimes.base import Execution
from triptych.tensors import TensorSpec
from triptych.types import Array

if TYPE_CHECKING:
    import openvino

PartCompiler: TypeAlias = "Callable[[openvino.Model], openvino.CompiledModel]"


_BORDER_TYPES = ("Parameter", "Result")


def open_parts(
    model: "openvino.Model",
    *,
    compile_part: PartCompiler,
    ports: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    execution: Execution,
) -> PartsSession:
    """Cut a network, which is of no other use afterwards, into parts that are compiled to run.

    From one part to another bfloat16 goes as float32, which holds it exactly: NumPy has none.

    Args:
        model: the network.
        compile_part: compiles a part of it.
        ports: its inputs and outputs, in its own order.
        execution: what the session says of itself.
    """
    import openvino
    from openvino import Type, opset13

    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() not in _BORDER_TYPES]
    inputs = [_value(node.output(0)) for node in model.get_parameters()]
    outputs = [_value(node.input_value(0)) for node in model.get_results()]
    parts = cut([_step(node) for node in nodes], results=outputs)
    # Looked up now: running a part takes its inputs off what fed them.
    readers = {part: _readers([nodes[index] for index in part.steps], part) for part in parts}
    makers = {_value(output): output for node in nodes for output in node.outputs()}
    narrow = {name for name, output in makers.items() if output.get_element_type() == Type.bf16}

    def run_part(part: Part, feed: Mapping[str, Array]) -> dict[str, Array]:
        sources = {name: _source(name, value) for name, value in feed.items()}
        for name, source in sources.items():
            fed_with = opset13.convert(source, Type.bf16) if name in narrow else source
            for reader in readers[part][name]:
                reader.replace_source_output(fed_with.output(0))
        fed = [name for name in feed if not is_shape(feed[name])]
        results = [
            opset13.convert(makers[name], Type.f32) if name in narrow else makers[name]
            for name in part.gives
        ]
        try:
            network = openvino.Model(
                [opset13.result(result) for result in results],
                [sources[name] for name in fed],
                "part",
            )
            request = compile_part(network).create_infer_request()
            found = request.infer([feed[name] for name in fed])
        except RuntimeError as error:
            raise BackendError(f"openvino: could not run the network. {error}") from error
        return {name: np.array(found[index]) for index, name in enumerate(part.gives)}

    names = [port.name for side in ports for port in side]
    return PartsSession(
        parts,
        run_part=run_part,
        values=dict(zip(names, [*inputs, *outputs], strict=True)),
        ports=ports,
        execution=execution,
    )


def _value(output: "openvino.Output") -> str:
    return f"{output.get_node().get_name()}:{output.get_index()}"


def _step(node: "openvino.Node") -> Step:
    is_constant = node.get_type_name() == "Constant"
    bits = node.get_element_type().bitwidth if is_constant else 0
    return Step(
        reads=tuple(_value(output) for output in node.input_values()),
        gives=tuple(_value(output) for output in node.outputs()),
        weight_bytes=math.prod(node.get_output_shape(0)) * bits // 8 if is_constant else 0,
    )


def _readers(nodes: "Sequence[openvino.Node]", part: Part) -> "dict[str, list[openvino.Input]]":
    """The inputs of a part's nodes that read each value from outside of it."""
    found: dict[str, list[openvino.Input]] = {name: [] for name in part.reads}
    for node in nodes:
        for index, output in enumerate(node.input_values()):
            if _value(output) in found:
                found[_value(output)].append(node.input(index))
    return found


def _source(name: str, value: Array) -> "openvino.Node":
    """What feeds a part a value: a constant where it is a shape, else a parameter of its shape."""
    import openvino
    from openvino import opset13

    if is_shape(value):
        return opset13.constant(value)
    return opset13.parameter(list(value.shape), dtype=openvino.Type(value.dtype), name=name)
