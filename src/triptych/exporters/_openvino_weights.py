"""Putting a checkpoint's weights into an OpenVINO graph that was traced without them."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.dependencies import import_optional
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weights import stream_tensors

if TYPE_CHECKING:
    import openvino


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
            several.
    """
    import torch
    from openvino import Type, opset13

    from triptych.models.mapped import kept_on_disk

    dtype = torch.float16 if half else torch.float32
    parameters = {
        name: parameter
        for parameter in model.get_parameters()
        if (name := parameter.get_friendly_name()) in stored
    }
    for name, made in stream_tensors(stored, parameters):
        parameter = parameters[name]
        tensor = kept_on_disk(made, stored[name], dtype, scratch=scratch)
        source = opset13.constant(tensor.numpy(), shared_memory=True)
        source.set_friendly_name(name)
        if half:
            source = opset13.convert(source, Type.f32)
            source.set_friendly_name(f"{name}/widened")
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


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
