"""Reading ONNX graphs without their external weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from triptych.dependencies import import_optional
from triptych.errors import BundleError

if TYPE_CHECKING:
    import onnx

Model: TypeAlias = "onnx.ModelProto"


def names_read(node: "onnx.NodeProto") -> Iterator[str]:
    """The inputs of a node, and what the graphs inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from names_read(inner)


def read_graph(path: Path) -> Model:
    """A graph as it lies in its file; weights beside it are not read.

    Raises:
        BundleError: the file is not an ONNX graph.
    """
    onnx = import_optional("onnx", extra="onnxruntime")
    try:
        model: Model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class with OSError
        raise BundleError(
            f"{path}: got {error}, want an ONNX graph that onnxruntime can load."
        ) from error
    return model
