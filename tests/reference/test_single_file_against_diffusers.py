"""Single files composed, beside diffusers' from_single_file."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.modules import load_module
from triptych.testing import tiny_checkpoint, write_single_file
from triptych.testing.tiny import TinyKind
from triptych.types import ComponentName
from triptych.workflows.compose import ComposeRequest, compose_checkpoint

pytestmark = pytest.mark.slow

PIPELINES = {
    "base": StableDiffusionXLPipeline,
    "refiner": StableDiffusionXLImg2ImgPipeline,
    "inpaint": StableDiffusionXLInpaintPipeline,
}
NETWORKS: dict[ComponentName, str] = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}


def weights_of(checkpoint: Checkpoint, component: ComponentName) -> dict[str, torch.Tensor]:
    state = load_module(checkpoint, component, dtype=torch.float32).state_dict()
    if NETWORKS[component] == "vae":
        return dict(state)
    return {name.partition(".")[2]: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_weight_is_diffusers_own(kind: TinyKind, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny", kind=kind)
    file = write_single_file(folder, tmp_path / "model.safetensors")
    expected = PIPELINES[kind].from_single_file(str(file), config=str(folder))
    made = compose_checkpoint(ComposeRequest(checkpoint=file, config=folder), tmp_path / "made")
    assert made.config == open_checkpoint(folder).config
    for component in made.config.components:
        found = weights_of(made, component)
        network = getattr(expected, NETWORKS[component]).state_dict()
        assert found.keys() <= network.keys()
        assert all(torch.equal(tensor, network[name]) for name, tensor in found.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_half_and_eighth_precision_are_read_as_stored(
    dtype: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = write_single_file(checkpoint, tmp_path / "model.safetensors", dtype=dtype)
    request = ComposeRequest(checkpoint=file, config=checkpoint)
    made = compose_checkpoint(request, tmp_path / "made")
    whole = open_checkpoint(checkpoint)
    for component in made.config.components:
        found = weights_of(made, component)
        for name, tensor in weights_of(whole, component).items():
            assert torch.equal(found[name], tensor.to(getattr(torch, dtype)).float())
