"""An OpenVINO graph before it is compiled: how it is read, and what it says of itself."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from triptych.bundle.bundle import Artifact
from triptych.bundle.layouts import Binding
from triptych.dependencies import import_optional
from triptych.errors import BundleError, UsageError
from triptych.models.precisions import ROUNDS_ACTIVATIONS
from triptych.tensors import TensorSpec, axis_length
from triptych.types import Precision

if TYPE_CHECKING:
    import openvino

_AXES = ("batch", "height", "width")
"""The axes of SDXL's tensors that are not fixed; height and width are the latents'."""


def read_model(artifact: Artifact) -> "openvino.Model":
    """An artifact's network, whose timestep may have a fraction."""
    engine = import_optional("openvino", extra="openvino")
    try:
        model = engine.Core().read_model(artifact.path)
    except RuntimeError as error:
        raise BundleError(
            f"{artifact.path}: got {error}, want a network that OpenVINO can read, in full."
        ) from error
    _keep_fractions(engine, model)
    return model


def _keep_fractions(engine: ModuleType, model: "openvino.Model") -> None:
    """Take the timestep as float32 where the graph takes an integer and then converts it.

    optimum-intel's graphs do, and GenAI wants them to; several schedules have steps between two
    integers.
    """
    for port in model.inputs:
        readers = [reader.get_node().get_type_name() for reader in port.get_target_inputs()]
        if (
            "timestep" in port.get_names()
            and port.get_element_type().is_integral_number()
            and set(readers) <= {"Broadcast", "Convert"}
        ):
            port.get_node().set_element_type(engine.Type.f32)
            model.validate_nodes_and_infer_types()


def rounded_activations(model: "openvino.Model") -> Precision | None:
    """What a graph says of activations: rounded as they come, or by a calibration; None for not."""
    mark = list(ROUNDS_ACTIVATIONS)
    if model.has_rt_info(mark) and str(model.get_rt_info(mark).astype(str)) != "0":
        return "int8-dynamic"
    calibrated = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    return "hybrid" if calibrated else None


def own_precision(model: "openvino.Model") -> Precision:
    """What a graph computes in where nothing else is asked for."""
    is_bfloat16 = any(
        node.get_type_name() != "Constant"
        and any(port.get_element_type().get_type_name() == "bf16" for port in node.outputs())
        for node in model.get_ops()
    )
    return "bf16" if is_bfloat16 else "fp32"


def static_shapes(artifact: Artifact, axes: Mapping[str, int]) -> dict[str, list[int]]:
    """Shapes of a network's inputs where axes have these lengths; -1 for those that have none."""
    unknown = set(axes) - set(_AXES)
    if unknown:
        raise UsageError(
            f"openvino: got static axes {', '.join(sorted(unknown))}, want {', '.join(_AXES)}."
        )
    shapes = {}
    for spec, binding in zip(artifact.spec.inputs, artifact.bindings.inputs, strict=True):
        lengths = [axis_length(axis, axes) for axis in spec.shape]
        shapes[binding.artifact_name] = [-1 if size is None else size for size in lengths] or [1]
    return shapes


def port_specs(
    ports: "Sequence[openvino.ConstOutput | openvino.Output]", bindings: Sequence[Binding]
) -> tuple[TensorSpec, ...]:
    """Ports by those of their names that are bound to the spec's, or any."""
    bound = {binding.artifact_name for binding in bindings}
    return tuple(
        TensorSpec(
            name=next((name for name in sorted(port.get_names()) if name in bound), "")
            or port.get_any_name(),
            dtype=port.get_element_type().to_dtype().name,
            shape=tuple(
                axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()
            ),
        )
        for port in ports
    )
