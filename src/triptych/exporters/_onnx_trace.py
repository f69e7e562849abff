"""Tracing a component into an ONNX graph without its weights, and without computing it.

A trace needs parameters of the right shape and dtype, not their values, and nobody looks at what
it computes. So parameters occupy one element each, and matrix products, nearly all of the work,
give zeros of the right shape: the full-size U-Net is traced in seconds and half a GiB.
"""

import io
import warnings
from typing import TYPE_CHECKING

from triptych.bundle.layouts import component_bindings
from triptych.models.checkpoint import Checkpoint
from triptych.models.component import ComponentSpec
from triptych.models.sdxl import component_spec
from triptych.types import ComponentName

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18
"""optimum-onnx 0.1.0's default (exporters/onnx/base.py)."""

# Sizes to trace with. The latent edges are odd, so that the U-Net takes its upsample-to-size
# path and the graph is right for every size divisible by 8, not only for multiples of 32.
_TRACE_AXES = {"batch": 2, "height": 9, "width": 11}

# What graphs call dynamic axes.
_AXIS_NAMES = {"batch": "batch_size", "8*height": "height_px", "8*width": "width_px"}


def trace_component(
    module: "torch.nn.Module", component: ComponentName, checkpoint: Checkpoint
) -> "onnx.ModelProto":
    """Trace a module into a graph whose weights are still named inputs.

    The graph has optimum's tensor names, and is where the OpenVINO exporter starts too.

    Args:
        module: a skeleton, which is of no use afterwards.
        component: which component it is.
        checkpoint: whose configs say its sizes.
    """
    import onnx
    import torch

    spec = component_spec(component, checkpoint.config)
    bindings = component_bindings(component, checkpoint.config, artifact_format="onnx")
    names = {
        binding.name: binding.artifact_name for binding in (*bindings.inputs, *bindings.outputs)
    }
    inputs = [names[tensor.name] for tensor in spec.inputs]
    module_outputs: tuple[str, ...] = module.output_names  # type: ignore[assignment]
    outputs = [names.get(name, name) for name in module_outputs]
    arguments = tuple(
        torch.zeros(
            [_trace_length(axis) for axis in tensor.shape], dtype=getattr(torch, tensor.dtype)
        )
        for tensor in spec.inputs
    )
    matrices = _pass_matrices(module, num_inputs=len(inputs))
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # The tracer warns of Python branches on shapes; the parity check at export runs the graph
        # at other shapes. The TorchScript exporter is deprecated and seven times faster: ADR 3.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (*arguments, *matrices.values()),
            buffer,  # type: ignore[arg-type]  # a file object is fine for this exporter
            dynamo=False,
            export_params=False,
            keep_initializers_as_inputs=True,  # else equal-looking skeleton weights are merged
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=[*inputs, *matrices],
            output_names=outputs,
            dynamic_axes=_dynamic_axes(spec, inputs, outputs),
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    _declare_output_shapes(model, spec)
    return model


def _pass_matrices(module: "torch.nn.Module", *, num_inputs: int) -> "dict[str, torch.Tensor]":
    """Make a module take its matrices and kernels as arguments, after its inputs.

    The exporter copies every parameter into what it infers shapes from, 3 GiB of the full-size
    U-Net. Vectors are small, and stay parameters: some code asks for the first one's dtype.

    Returns:
        The parameters that were taken out, by their names.
    """
    from triptych.exporters._shapes_only import LinearShapesOnly

    matrices: dict[str, torch.Tensor] = {
        name: weight for name, weight in module.named_parameters() if weight.ndim > 1
    }
    places = []
    for name in matrices:
        owner, _, attribute = name.rpartition(".")
        places.append((module.get_submodule(owner), attribute))
        delattr(*places[-1])
    forward = module.forward

    def forward_with(*arguments: "torch.Tensor") -> object:
        for place, weight in zip(places, arguments[num_inputs:], strict=True):
            object.__setattr__(*place, weight)
        with LinearShapesOnly():
            return forward(*arguments[:num_inputs])

    module.forward = forward_with
    return matrices


def _trace_length(axis: int | str) -> int:
    if isinstance(axis, int):
        return axis
    factor, star, name = axis.rpartition("*")
    return (int(factor) if star else 1) * _TRACE_AXES[name]


def _dynamic_axes(
    spec: ComponentSpec, inputs: list[str], outputs: list[str]
) -> dict[str, dict[int, str]]:
    axes = {
        name: {
            index: _AXIS_NAMES.get(axis, axis)
            for index, axis in enumerate(tensor.shape)
            if isinstance(axis, str)
        }
        for name, tensor in zip(inputs, spec.inputs, strict=True)
    }
    return {**axes, **{name: {0: _AXIS_NAMES["batch"]} for name in outputs}}


def _declare_output_shapes(model: "onnx.ModelProto", spec: ComponentSpec) -> None:
    """Say the outputs' axes as the spec does; the tracer invents names for those it is not sure of.

    All image-like outputs, and all hidden states, have the shape of the component's first output.
    """
    shape = spec.outputs[0].shape
    for value in model.graph.output:
        axes = value.type.tensor_type.shape.dim
        if len(axes) == len(shape):
            for axis, length in zip(axes, shape, strict=True):
                if isinstance(length, int):
                    axis.dim_value = length
                else:
                    axis.dim_param = _AXIS_NAMES.get(length, length)
