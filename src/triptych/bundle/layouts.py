"""Where each ecosystem puts its files, and what it calls the tensors.

optimum's layout (optimum-onnx 0.1.0, exporters/onnx/model_configs.py) is what
`ORTStableDiffusionXLPipeline.from_pretrained` opens and `optimum-cli export onnx` writes.
optimum-intel 1.27.0 keeps its folders and tensor names for OpenVINO; OpenVINO GenAI reads the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from triptych.models.sdxl import SdxlConfig, component_spec
from triptych.types import ComponentName, FormatName

MANIFEST_NAME = "triptych.json"

ARTIFACT_FILES: Mapping[FormatName, str] = {
    "onnx": "model.onnx",
    "openvino": "openvino_model.xml",
}
"""The file, in a component's folder, that an engine opens. A checkpoint has none of its own."""

_OPTIMUM_NAMES: Mapping[ComponentName, Mapping[str, str]] = {
    "text_encoder": {},
    "text_encoder_2": {},
    "unet": {"noise_pred": "out_sample"},
    "vae_encoder": {"image": "sample", "moments": "latent_parameters"},
    "vae_decoder": {"latents": "latent_sample", "image": "sample"},
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One tensor's two names.

    Attributes:
        name: in triptych's vocabulary.
        artifact_name: in the exported graph.
    """

    name: str
    artifact_name: str


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
    names = {} if artifact_format == "diffusers" else dict(_OPTIMUM_NAMES[component])
    if component in config.text_encoders:
        # SDXL conditions on the penultimate hidden state, hidden_states[-2] of layers + 1 states
        # (diffusers pipeline_stable_diffusion_xl.py, encode_prompt).
        penultimate = config.text_encoders[component].num_hidden_layers - 1
        names["hidden_states"] = f"hidden_states.{penultimate}"
    spec = component_spec(component, config)
    return Bindings(
        inputs=tuple(_binding(tensor.name, names) for tensor in spec.inputs),
        outputs=tuple(_binding(tensor.name, names) for tensor in spec.outputs),
    )


def _binding(name: str, names: Mapping[str, str]) -> Binding:
    return Binding(name=name, artifact_name=names.get(name, name))
