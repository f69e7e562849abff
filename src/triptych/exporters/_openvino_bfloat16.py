"""Graphs that compute in bfloat16 by themselves, whatever the engine is told."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from triptych.types import Array

if TYPE_CHECKING:
    import openvino
    import torch


def sinusoids(model: "openvino.Model") -> "Iterator[openvino.Node]":
    """The nodes from which a sine or cosine is computed, up to the Convert that made them float32.

    That one counts: an engine that computes in bfloat16 would have it round a timestep of 999,
    which clients hand over as an integer, to 1000.
    """
    from openvino import Type

    waiting = [node for node in model.get_ops() if node.get_type_name() in ("Sin", "Cos")]
    while waiting:
        node = waiting.pop()
        if node.get_element_type() == Type.f32 and node.get_type_name() != "Parameter":
            yield node
            waiting += [source.get_node() for source in node.input_values()]


def compute_in_bfloat16(model: "openvino.Model") -> None:
    """Retype a float32 graph: everything but its inputs, its outputs and its sinusoids.

    Weights that are bfloat16 already stay. Changed in place.
    """
    wide = {node.get_friendly_name() for node in sinusoids(model)}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Result":
            _widen_output(node)
        elif node.get_output_size() and _is_float32(node.output(0)):
            _narrow(node, wide)


def bfloat16_constant(
    tensor: "torch.Tensor", *, shared_memory: bool = False
) -> "openvino.op.Constant":
    """A constant of a bfloat16 tensor's values; where memory is shared, the tensor must live on."""
    import torch
    from openvino import Tensor, Type, opset13

    bits: Array = tensor.view(torch.int16).numpy()
    wrapped = Tensor(bits, list(tensor.shape), Type.bf16)
    return opset13.constant(wrapped, shared_memory=shared_memory)


def _is_float32(port: "openvino.Output") -> bool:
    from openvino import Type

    return bool(port.get_element_type() == Type.f32)


def _narrow(node: "openvino.Node", wide: set[str]) -> None:
    """Give bfloat16 to whoever reads a float32 node from outside of what stays wide."""
    from openvino import Type, opset13

    kind, name = node.get_type_name(), node.get_friendly_name()
    readers = [
        reader
        for reader in node.output(0).get_target_inputs()
        if reader.get_node().get_friendly_name() not in wide
    ]
    if not readers:
        return
    if kind == "Parameter" or name in wide:
        narrow = opset13.convert(node, Type.bf16)
    elif kind == "Constant":
        narrow = _rounded(node.data)
        narrow.set_friendly_name(name)
    elif kind == "Convert":
        narrow = opset13.convert(node.input_value(0), Type.bf16)
    else:
        return  # its type follows from what it reads
    for reader in readers:
        reader.replace_source_output(narrow.output(0))


def _rounded(values: Array) -> "openvino.op.Constant":
    """The nearest bfloat16 numbers; a mask's least float32, which has none, stays finite."""
    import torch

    limits = torch.finfo(torch.bfloat16)
    wide = torch.from_numpy(np.array(values)).clamp(min=limits.min, max=limits.max)
    return bfloat16_constant(wide.to(torch.bfloat16))


def _widen_output(result: "openvino.Node") -> None:
    """Clients read float32, under the same names."""
    from openvino import Type, opset13

    source = result.input_value(0)
    names = source.get_names()
    widened = opset13.convert(source, Type.f32).output(0)
    source.get_tensor().set_names(set())
    widened.get_tensor().set_names(names)
    result.input(0).replace_source_output(widened)
