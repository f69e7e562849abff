"""An ONNX graph part by part: see `_parts.py`."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from triptych.errors import BackendError
from triptych.runtimes._onnx_reading import names_read, read_graph
from triptych.runtimes._parts import Part, PartsSession, Step, cut, is_shape
from triptych.runtimes.base import Execution
from triptych.tensors import TensorSpec
from triptych.types import Array

if TYPE_CHECKING:
    import onnx
    import onnxruntime

GraphOpener: TypeAlias = "Callable[[bytes], onnxruntime.InferenceSession]"


def open_parts(path: Path, *, open_graph: GraphOpener, execution: Execution) -> PartsSession:
    """Read a graph, without external weights, and cut it into parts.

    Args:
        path: the graph.
        open_graph: opens a part of it, which has the external weights of the whole.
        execution: what the session says of itself.

    Raises:
        BundleError: the file is not an ONNX graph.
    """
    model = read_graph(path)
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    computed = {value.name for value in inputs}
    computed.update(name for node in graph.node for name in node.output)
    steps = [_step(node, computed, weights) for node in graph.node]

    def run_part(part: Part, feed: Mapping[str, Array]) -> dict[str, Array]:
        whole = _part_model(model, part, feed, weights)
        fed = {name: value for name, value in feed.items() if not is_shape(value)}
        try:
            session = open_graph(whole.SerializeToString())
            found = session.run(list(part.gives), fed)
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"onnxruntime: could not run the graph. {error}") from error
        return dict(zip(part.gives, found, strict=True))

    return PartsSession(
        cut(steps, results=outputs),
        run_part=run_part,
        values={name: name for name in (*(value.name for value in inputs), *outputs)},
        ports=(tuple(map(_port, inputs)), tuple(map(_port, graph.output))),
        execution=execution,
    )


def _step(
    node: "onnx.NodeProto", computed: set[str], weights: "Mapping[str, onnx.TensorProto]"
) -> Step:
    read = dict.fromkeys(names_read(node))
    return Step(
        reads=tuple(name for name in read if name in computed),
        gives=tuple(name for name in node.output if name),
        weight_bytes=sum(_weight_bytes(weights[name]) for name in read if name in weights),
    )


def _weight_bytes(weight: "onnx.TensorProto") -> int:
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
    num_bytes: int = math.prod(weight.dims) * dtype.itemsize
    return num_bytes


def _part_model(
    model: "onnx.ModelProto",
    part: Part,
    feed: Mapping[str, Array],
    weights: "Mapping[str, onnx.TensorProto]",
) -> "onnx.ModelProto":
    """A part as a model of its own, with the shapes of its feed."""
    import onnx

    nodes = [model.graph.node[index] for index in part.steps]
    read = dict.fromkeys(name for node in nodes for name in names_read(node))
    shapes = {name: value for name, value in feed.items() if is_shape(value)}
    graph = onnx.helper.make_graph(
        nodes,
        "part",
        inputs=[
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feed.items()
            if name not in shapes
        ],
        outputs=[onnx.ValueInfoProto(name=name) for name in part.gives],
        initializer=[
            *(weights[name] for name in read if name in weights),
            *(onnx.numpy_helper.from_array(value, name) for name, value in shapes.items()),
        ],
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
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
