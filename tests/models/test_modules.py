import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.modules import load_module, skeleton_module
from triptych.models.prompts import prompt_ids
from triptych.models.sdxl import COMPONENTS
from triptych.types import ComponentName


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> Checkpoint:
    return open_checkpoint(checkpoint)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(
    opened: Checkpoint, component: ComponentName, *inputs: torch.Tensor
) -> dict[str, torch.Tensor]:
    module = load_module(opened, component, dtype=torch.float32)
    names: tuple[str, ...] = module.output_names  # type: ignore[assignment]
    with torch.no_grad():
        return dict(zip(names, module(*inputs), strict=True))


@pytest.mark.parametrize(
    ("component", "kind", "pooled"),
    [
        ("text_encoder", CLIPTextModel, "pooler_output"),
        ("text_encoder_2", CLIPTextModelWithProjection, "text_embeds"),
    ],
)
def test_text_encoders_give_what_transformers_gives(
    component: ComponentName,
    kind: type[torch.nn.Module],
    pooled: str,
    opened: Checkpoint,
) -> None:
    ids = torch.from_numpy(prompt_ids(opened.folder, component))
    theirs = kind.from_pretrained(opened.folder / component, attn_implementation="eager")  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True)
    outputs = run(opened, component, ids)
    penultimate = opened.config.text_encoders[component].num_hidden_layers - 1
    assert torch.equal(outputs[f"hidden_states.{penultimate}"], expected.hidden_states[-2])
    assert torch.equal(outputs[pooled], expected[pooled])
    assert torch.equal(outputs["last_hidden_state"], expected.last_hidden_state)
    assert len(outputs) == 2 + len(expected.hidden_states)


def test_eager_attention_changes_rounding_only(opened: Checkpoint) -> None:
    ids = torch.from_numpy(prompt_ids(opened.folder, "text_encoder"))
    theirs = CLIPTextModel.from_pretrained(opened.folder / "text_encoder")
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
    actual = run(opened, "text_encoder", ids)["last_hidden_state"]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("timestep", [999.0, 500.5, 1.0])
def test_the_unet_gives_what_diffusers_gives(timestep: float, opened: Checkpoint) -> None:
    sample, states = noise(2, 4, 9, 13), noise(2, 77, 80, seed=1)
    added = {
        "text_embeds": noise(2, 64, seed=2),
        "time_ids": torch.tensor([[128.0, 104, 3, 5, 72, 104]] * 2),
    }
    theirs = UNet2DConditionModel.from_pretrained(opened.folder / "unet")
    with torch.no_grad():
        expected = theirs(sample, torch.tensor(timestep), states, added_cond_kwargs=added).sample
    actual = run(opened, "unet", sample, torch.tensor(timestep), states, *added.values())
    assert torch.equal(actual["noise_pred"], expected)


def test_the_vae_encoder_gives_the_moments_of_diffusers(opened: Checkpoint) -> None:
    image = noise(2, 3, 40, 72).clamp(-1, 1)
    theirs = AutoencoderKL.from_pretrained(opened.folder / "vae")
    with torch.no_grad():
        expected = theirs.encode(image).latent_dist.parameters
    assert torch.equal(run(opened, "vae_encoder", image)["moments"], expected)


def test_the_vae_decoder_gives_the_image_of_diffusers(opened: Checkpoint) -> None:
    latents = noise(2, 4, 5, 9)
    theirs = AutoencoderKL.from_pretrained(opened.folder / "vae")
    with torch.no_grad():
        expected = theirs.decode(latents).sample
    assert torch.equal(run(opened, "vae_decoder", latents)["image"], expected)


@pytest.mark.parametrize("component", COMPONENTS)
def test_half_precision_stays_inside_the_module(
    component: ComponentName, opened: Checkpoint
) -> None:
    module = load_module(opened, component, dtype=torch.float16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    inputs = {
        "text_encoder": (torch.ones(1, 77, dtype=torch.int64),),
        "text_encoder_2": (torch.ones(1, 77, dtype=torch.int64),),
        "unet": (
            noise(1, 4, 8, 8),
            torch.tensor(999.0),
            noise(1, 77, 80),
            noise(1, 64),
            torch.full((1, 6), 64.0),
        ),
        "vae_encoder": (noise(1, 3, 64, 64),),
        "vae_decoder": (noise(1, 4, 8, 8),),
    }[component]
    with torch.no_grad():
        assert {output.dtype for output in module(*inputs)} == {torch.float32}


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_loaded_module_does_not_train(component: ComponentName, opened: Checkpoint) -> None:
    module = load_module(opened, component, dtype=torch.float32)
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_skeletons_parameters_occupy_one_element_each(
    component: ComponentName, dtype: torch.dtype, opened: Checkpoint
) -> None:
    skeleton, stored = skeleton_module(opened, component, dtype=dtype)
    whole = load_module(opened, component, dtype=dtype)
    expected = {name: parameter.shape for name, parameter in whole.named_parameters()}
    parameters = dict(skeleton.named_parameters())
    assert {name: parameter.shape for name, parameter in parameters.items()} == expected
    assert stored.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == dtype
        assert parameter.untyped_storage().nbytes() == dtype.itemsize
        assert math.prod(stored[name].shape) == parameter.numel()


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_skeletons_buffers_are_those_of_the_whole_module(
    component: ComponentName, opened: Checkpoint
) -> None:
    skeleton, _ = skeleton_module(opened, component, dtype=torch.float32)
    whole = load_module(opened, component, dtype=torch.float32)
    buffers = dict(skeleton.named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer)
