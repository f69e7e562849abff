"""Where each ecosystem puts its files, and what it calls the tensors.

optimum's layout (optimum-onnx 0.1.0, exporters/onnx/model_configs.py) is what
`ORTStableDiffusionXLPipeline.from_pretrained` opens and `optimum-cli export onnx` writes.
optimum-intel 1.27.0 keeps its folders and tensor names for OpenVINO; OpenVINO GenAI reads the same.
Apple's layout is in `apple.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

from triptych.bundle import apple
from triptych.models.component import ComponentSpec
from triptych.models.sdxl import SdxlConfig, component_spec
from triptych.tensors import PortSpecs, TensorSpec
from triptych.types import ComponentName, FormatName

MANIFEST_NAME = "triptych.json"

ARTIFACT_FILES: Mapping[FormatName, str] = {
    "onnx": "model.onnx",
    "openvino": "openvino_model.xml",
}
"""The file, in a component's folder, that an engine opens. A checkpoint has none of its own, and
Core ML packages lie in the bundle's root."""

BUNDLE_FORMATS: tuple[FormatName, ...] = (*ARTIFACT_FILES, "coreml")
"""The formats that exporters write."""

Layout: TypeAlias = Literal["plain", "bc1s", "per_row"]
"""How a tensor lies in a graph. plain: as in the spec. bc1s: [batch, tokens, width] becomes
[batch, width, 1, tokens], which Apple's Neural Engine wants. per_row: one number for the whole
batch is repeated for each of its rows."""

_OPTIMUM_NAMES: Mapping[ComponentName, Mapping[str, str]] = {
    "text_encoder": {},
    "text_encoder_2": {},
    "unet": {"noise_pred": "out_sample"},
    "vae_encoder": {"image": "sample", "moments": "latent_parameters"},
    "vae_decoder": {"latents": "latent_sample", "image": "sample"},
    # No component of optimum's: named as what it stands in for.
    "preview_decoder": {"latents": "latent_sample", "image": "sample"},
}

_APPLE_LAYOUTS: Mapping[str, Layout] = {"encoder_hidden_states": "bc1s", "timestep": "per_row"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One tensor's two names.

    Attributes:
        name: in triptych's vocabulary.
        artifact_name: in the exported graph.
        layout: how it lies in the graph.
    """

    name: str
    artifact_name: str
    layout: Layout = "plain"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bindings:
    """How one component's spec maps to its graph.

    Attributes:
        inputs: one for each input of the spec.
        outputs: one for each output of the spec; the graph may have more.
    """

    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]


def component_bindings(
    component: ComponentName, config: SdxlConfig, *, artifact_format: FormatName
) -> Bindings:
    """The tensor names of one component in one format's layout."""
    names = _artifact_names(component, config, artifact_format)
    layouts = _APPLE_LAYOUTS if artifact_format == "coreml" else {}
    spec = component_spec(component, config)
    inputs, outputs = (
        tuple(
            Binding(
                name=tensor.name,
                artifact_name=names.get(tensor.name, tensor.name),
                layout=layouts.get(tensor.name, "plain"),
            )
            for tensor in tensors
        )
        for tensors in (spec.inputs, spec.outputs)
    )
    return Bindings(inputs=inputs, outputs=outputs)


def _artifact_names(
    component: ComponentName, config: SdxlConfig, artifact_format: FormatName
) -> Mapping[str, str]:
    if artifact_format == "coreml":
        return apple.TENSOR_NAMES[component]
    names = {} if artifact_format == "diffusers" else dict(_OPTIMUM_NAMES[component])
    if component in config.text_encoders:
        # SDXL conditions on the penultimate hidden state, hidden_states[-2] of layers + 1 states
        # (diffusers pipeline_stable_diffusion_xl.py, encode_prompt).
        penultimate = config.text_encoders[component].num_hidden_layers - 1
        names["hidden_states"] = f"hidden_states.{penultimate}"
    return names


def graph_ports(spec: ComponentSpec, bindings: Bindings) -> PortSpecs:
    """A component's spec in the names and layout of its graph; dtypes stay the spec's."""
    inputs, outputs = (
        tuple(
            TensorSpec(
                name=binding.artifact_name,
                dtype=tensor.dtype,
                shape=_graph_shape(tensor.shape, binding.layout),
            )
            for tensor, binding in zip(tensors, bound, strict=True)
        )
        for tensors, bound in ((spec.inputs, bindings.inputs), (spec.outputs, bindings.outputs))
    )
    return PortSpecs(inputs=inputs, outputs=outputs)


def _graph_shape(shape: tuple[int | str, ...], layout: Layout) -> tuple[int | str, ...]:
    match layout:
        case "plain":
            return shape
        case "bc1s":
            batch, tokens, width = shape
            return (batch, width, 1, tokens)
        case "per_row":
            return ("batch",)


def artifact_paths(
    folder: Path, component: ComponentName, config: SdxlConfig, *, artifact_format: FormatName
) -> tuple[Path, ...]:
    """What an engine opens, in the order it runs; nothing where the component is not there.

    Raises:
        BundleError: several candidates, or a part of one.
    """
    if artifact_format == "coreml":
        return apple.find_packages(folder, apple.submodule_name(component, config))
    path = folder / component / ARTIFACT_FILES[artifact_format]
    return (path,) if path.is_file() else ()
