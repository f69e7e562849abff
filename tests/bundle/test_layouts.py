from pathlib import Path

import pytest

from triptych.bundle.layouts import Binding, component_bindings
from triptych.models.sdxl import COMPONENTS, component_spec, read_sdxl_config
from triptych.types import ComponentName

HIDDEN = {"text_encoder": "hidden_states.2", "text_encoder_2": "hidden_states.3"}


@pytest.mark.parametrize(
    ("component", "renamed"),
    [
        ("text_encoder", {"hidden_states": HIDDEN["text_encoder"]}),
        ("text_encoder_2", {"hidden_states": HIDDEN["text_encoder_2"]}),
        ("unet", {"noise_pred": "out_sample"}),
        ("vae_encoder", {"image": "sample", "moments": "latent_parameters"}),
        ("vae_decoder", {"latents": "latent_sample", "image": "sample"}),
        ("preview_decoder", {"latents": "latent_sample", "image": "sample"}),
    ],
)
def test_onnx_graphs_bear_optimums_names(
    component: ComponentName, renamed: dict[str, str], checkpoint: Path
) -> None:
    config = read_sdxl_config(checkpoint)
    bindings = component_bindings(component, config, artifact_format="onnx")
    found = {
        binding.name: binding.artifact_name
        for binding in (*bindings.inputs, *bindings.outputs)
        if binding.name != binding.artifact_name
    }
    assert found == renamed


@pytest.mark.parametrize("component", [*COMPONENTS, "preview_decoder"])
def test_a_checkpoints_tensors_bear_our_names_but_for_the_hidden_state(
    component: ComponentName, checkpoint: Path
) -> None:
    config = read_sdxl_config(checkpoint)
    bindings = component_bindings(component, config, artifact_format="diffusers")
    for binding in (*bindings.inputs, *bindings.outputs):
        expected = HIDDEN[component] if binding.name == "hidden_states" else binding.name
        assert binding == Binding(name=binding.name, artifact_name=expected)


@pytest.mark.parametrize("component", [*COMPONENTS, "preview_decoder"])
def test_every_tensor_of_the_spec_is_bound_in_its_order(
    component: ComponentName, checkpoint: Path
) -> None:
    config = read_sdxl_config(checkpoint)
    spec = component_spec(component, config)
    bindings = component_bindings(component, config, artifact_format="onnx")
    assert [binding.name for binding in bindings.inputs] == [t.name for t in spec.inputs]
    assert [binding.name for binding in bindings.outputs] == [t.name for t in spec.outputs]
