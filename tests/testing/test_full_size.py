"""A full-size checkpoint, made here of tiny sizes: the same code, a thousandth of the bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from triptych.errors import UsageError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.published import REFINER_UNET, UNET
from triptych.testing import full_size_checkpoint, tiny
from triptych.testing.full_size import NetworkSizes

VOCAB_SIZE = 1000
SIZES = NetworkSizes(
    text_encoder={**tiny.TEXT_ENCODER, "vocab_size": VOCAB_SIZE},
    text_encoder_2={**tiny.TEXT_ENCODER_2, "vocab_size": VOCAB_SIZE},
    unet=tiny.UNET,
    vae=tiny.VAE,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size_checkpoint(tmp_path_factory.mktemp("full") / "checkpoint", sizes=SIZES)


def test_diffusers_loads_and_runs_it(checkpoint: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        checkpoint, local_files_only=True, torch_dtype=torch.float16
    )
    assert {weight.dtype for weight in pipeline.unet.parameters()} == {torch.float16}
    assert len(pipeline.tokenizer) == VOCAB_SIZE
    assert pipeline.tokenizer("a cat").input_ids[-1] == VOCAB_SIZE - 1
    with torch.no_grad():
        hidden_states, _, text_embeds, _ = pipeline.encode_prompt(
            "a cat", device="cpu", do_classifier_free_guidance=False
        )
        noise_pred = pipeline.unet(
            torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half(),
            999,
            hidden_states,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": torch.ones(1, 6).half()},
        ).sample
    assert 0.2 < float(noise_pred.float().std()) < 5


def test_weights_keep_signals_their_size(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.config.components == (
        "text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint, local_files_only=True)
    weight = pipeline.unet.conv_in.weight.detach().numpy().astype(np.float64)
    assert abs(weight.std() * np.sqrt(weight[0].size) - 1) < 0.1


def test_one_seed_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    again = full_size_checkpoint(tmp_path / "again", sizes=SIZES)
    other = full_size_checkpoint(tmp_path / "other", sizes=SIZES, seed=1)
    file = Path("unet", "diffusion_pytorch_model.safetensors")
    assert (again / file).read_bytes() == (checkpoint / file).read_bytes()
    assert (other / file).read_bytes() != (checkpoint / file).read_bytes()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(UsageError, match="not empty"):
        full_size_checkpoint(tmp_path, sizes=SIZES)
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize(("sizes", "count"), [(UNET, 2_567_463_684), (REFINER_UNET, 2_259_526_660)])
def test_published_numbers_make_the_published_networks(
    sizes: dict[str, object], count: int
) -> None:
    """The counts of Podell et al. 2023, table 1 (2.6 B), and of the published files."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(**sizes)
    assert sum(weight.numel() for weight in network.parameters()) == count
