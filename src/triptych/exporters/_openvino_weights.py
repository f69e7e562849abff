"""Putting a checkpoint's weights into an OpenVINO graph that was traced without them."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from triptych.dependencies import import_optional
from triptych.exporters._openvino_bfloat16 import bfloat16_constant, compute_in_bfloat16
from triptych.models.precisions import ACTIVATION_GROUP, OPENVINO_GROUP, ROUNDS_ACTIVATIONS
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weights import stream_tensors
from triptych.types import Precision

if TYPE_CHECKING:
    import openvino
    import torch

WIDENED = "/widened"
"""How the names of Converts end that widen weights."""

_DTYPES: Mapping[Precision, str] = {"fp16": "float16", "bf16": "bfloat16"}
_SMALLEST_GROUP = 16  # below that, scales weigh more than what four bits spare


def attach_weights(
    model: "openvino.Model",
    stored: Mapping[str, StoredTensor],
    precision: Precision,
    *,
    scratch: Path,
) -> "list[torch.Tensor]":
    """Replace the weight inputs of a graph by constants.

    Only weights are stored in half precision. Compressing every constant, as
    `openvino.save_model` does by default, rounds the frequencies of the timestep and size
    sinusoids too: 4 % error at timestep 951.

    Args:
        model: the graph; changed in place.
        stored: the weights by the names of their inputs.
        precision: fp16 stores float16 and widens at run time; bf16 stores bfloat16, and makes the
            graph compute in it; any other stores float32.
        scratch: a folder for weights that are stored in another dtype than wanted, or made of
            several.

    Returns:
        The weights, whose memory the graph shares: they must live as long as it is used.
    """
    import torch
    from openvino import Type, opset13

    from triptych.models.mapped import kept_on_disk

    dtype = _DTYPES.get(precision, "float32")
    parameters = {
        name: parameter
        for parameter in model.get_parameters()
        if (name := parameter.get_friendly_name()) in stored
    }
    weights = []
    for name, made in stream_tensors(stored, parameters):
        parameter = parameters[name]
        tensor = kept_on_disk(made, stored[name], getattr(torch, dtype), scratch=scratch)
        source = (
            bfloat16_constant(tensor, shared_memory=True)
            if precision == "bf16"
            else opset13.constant(tensor.numpy(), shared_memory=True)
        )
        weights.append(tensor)
        source.set_friendly_name(name)
        if precision == "fp16":
            source = opset13.convert(source, Type.f32)
            source.set_friendly_name(name + WIDENED)
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(source.output(0))
        model.remove_parameter(parameter)
    if precision == "bf16":
        compute_in_bfloat16(model)
    model.validate_nodes_and_infer_types()
    return weights


def compress_weights(model: "openvino.Model", precision: Precision) -> "openvino.Model":
    """Store matrices, embeddings and convolutions as integers.

    8 bits have one scale and zero point a channel: NNCF's INT8_ASYM, which is optimum-intel's
    `--weight-format int8`. At 4 bits, groups of a matrix's weights have one each: INT4_ASYM with
    ratio 1.0; embeddings and convolutions are left at 8. int8-dynamic marks the graph besides, so
    that every client of OpenVINO rounds activations.
    """
    nncf = import_optional("nncf", extra="export")
    with quiet_nncf():
        if precision == "int4":
            return _four_bits(nncf, model)
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    if precision == "int8-dynamic" and _has_matrices(model):
        model.set_rt_info(str(ACTIVATION_GROUP), list(ROUNDS_ACTIVATIONS))
    return model


def _has_matrices(model: "openvino.Model") -> bool:
    """Whether there is anything whose activations the engine would round."""
    return any(node.get_type_name() == "MatMul" for node in model.get_ops())


def _four_bits(nncf: ModuleType, model: "openvino.Model") -> "openvino.Model":
    """Four bits where a matrix can be cut into groups, smaller ones where it is narrow."""
    from nncf.quantization.advanced_parameters import (
        AdvancedCompressionParameters,
        GroupSizeFallbackMode,
    )

    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        ratio=1.0,
        group_size=OPENVINO_GROUP,
        all_layers=False,
        backup_mode=nncf.BackupMode.INT8_ASYM,
        advanced_parameters=AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=_SMALLEST_GROUP,
        ),
    )


@contextlib.contextmanager
def quiet_nncf() -> Iterator[None]:
    """Neither log nor print: NNCF does both, and draws progress, while it works."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
