"""Putting a checkpoint's weights into an OpenVINO graph that was traced without them."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triptych.dependencies import import_optional
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weights import stream_tensors
from triptych.types import Array

if TYPE_CHECKING:
    import openvino
    import torch


def attach_weights(
    model: "openvino.Model", stored: Mapping[str, StoredTensor], *, half: bool, scratch: Path
) -> None:
    """Replace the weight inputs of a graph by constants.

    Only weights are stored in half precision. Compressing every constant, as
    `openvino.save_model` does by default, rounds the frequencies of the timestep and size
    sinusoids too: 4 % error at timestep 951.

    Args:
        model: the graph; changed in place.
        stored: the weights by the names of their inputs.
        half: store float16 and widen at run time.
        scratch: a folder for weights that are stored in another dtype than wanted, or made of
            several. Must outlive the model, because constants are mapped from files in it.
    """
    from openvino import Type, opset13

    parameters = {
        name: parameter
        for parameter in model.get_parameters()
        if (name := parameter.get_friendly_name()) in stored
    }
    for index, (name, tensor) in enumerate(stream_tensors(stored, parameters)):
        parameter = parameters[name]
        kept = stored[name].is_plain and stored[name].dtype == ("F16" if half else "F32")
        array = tensor.numpy() if kept else _copied(tensor, half=half, path=scratch / f"{index}")
        source = opset13.constant(array, shared_memory=True)
        source.set_friendly_name(name)
        if half:
            source = opset13.convert(source, Type.f32)
            source.set_friendly_name(f"{name}/widened")
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _copied(tensor: "torch.Tensor", *, half: bool, path: Path) -> Array:
    """The weight, converted, mapped from a file of its own."""
    import torch

    wanted = torch.float16 if half else torch.float32
    if tensor.numel() == 0:  # which no file can be mapped for
        empty: Array = tensor.to(wanted).numpy()
        return empty
    dtype = np.dtype(np.float16 if half else np.float32)
    copy = np.memmap(path, dtype=dtype, mode="w+", shape=tuple(tensor.shape))
    copy[...] = tensor.to(wanted).numpy()
    return copy


def compress_weights(model: "openvino.Model") -> "openvino.Model":
    """Store matrices, embeddings and convolutions as 8-bit integers, one scale a channel.

    Nothing but weights: activations stay as they are. Source: NNCF's INT8_ASYM, which is
    optimum-intel's `--weight-format int8`.
    """
    nncf = import_optional("nncf", extra="export")
    with _silence("nncf"):
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


@contextlib.contextmanager
def _silence(name: str) -> Iterator[None]:
    """Neither log nor print: NNCF does both, and draws progress, while it works."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
