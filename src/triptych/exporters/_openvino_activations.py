"""Rounding activations of an OpenVINO U-Net to 8 bits by what a calibration has seen of them."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

from triptych.dependencies import import_optional
from triptych.exporters._openvino_weights import quiet_nncf

if TYPE_CHECKING:
    import openvino

_STEPS_TO_WEIGHT = ("Convert", "Multiply", "Reshape", "Subtract")
"""What widens a compressed weight, between its constant and who reads it."""


def quantize_hybrid(
    model: "openvino.Model", feeds: Path, *, exact: Collection[str]
) -> "openvino.Model":
    """Store matrices in 8 bits and compute convolutions, and attention's scores, in them.

    Source: optimum-intel 1.27.0, quantization.py, hybrid quantization of diffusion models: weights
    of matrices alone, then NNCF's post-training quantisation of everything else.

    Args:
        model: its inputs still as they were traced.
        feeds: .safetensors files of the model's inputs, by its names.
        exact: names of nodes that stay in float32.
    """
    nncf = import_optional("nncf", extra="export")
    names = {node.get_friendly_name(): _weight(node) for node in _convolutions(model)}
    weights = {name: weight.get_friendly_name() for name, weight in names.items() if weight}
    with quiet_nncf():
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_ASYM,
            ignored_scope=nncf.IgnoredScope(types=["Convolution"], validate=False),
        )
        paths = sorted(feeds.glob("*.safetensors"))
        model = nncf.quantize(
            model,
            nncf.Dataset(paths, load_file),
            subset_size=len(paths),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[*_matrices(model), *exact], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
            ),
        )
    for node in _convolutions(model):
        weight = _weight(node)
        if weight is not None and node.get_friendly_name() in weights:
            weight.set_friendly_name(weights[node.get_friendly_name()])
    return model


def _convolutions(model: "openvino.Model") -> "list[openvino.Node]":
    return [node for node in model.get_ops() if node.get_type_name() == "Convolution"]


def _matrices(model: "openvino.Model") -> Iterator[str]:
    """Products with a weight, which is compressed already."""
    for node in model.get_ops():
        if node.get_type_name() == "MatMul" and _weight(node) is not None:
            yield node.get_friendly_name()


def _weight(node: "openvino.Node") -> "openvino.Node | None":
    """The constant behind a node's second input; None where that is computed."""
    found = node.input_value(1).get_node()
    while found.get_type_name() in (*_STEPS_TO_WEIGHT, "FakeQuantize"):
        found = found.input_value(0).get_node()
    return found if found.get_type_name() == "Constant" else None
