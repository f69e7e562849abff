"""The optional sixth component: where it is found, what is refused, and what it decodes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from triptych.errors import CheckpointError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.modules import load_module, skeleton_module
from triptych.models.preview_decoder import check_preview_decoder, find_preview_decoder
from triptych.models.sdxl import COMPONENTS, read_sdxl_config

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def preview(preview_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the preview decoder's folder, away from any checkpoint."""
    return shutil.copytree(preview_checkpoint / "preview_decoder", tmp_path / "taesd")


def change(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {name: value for name, value in config.items() if value is not ...}
    path.write_text(json.dumps(kept))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_preview_decoder(folder, latent_channels=4, vae_scale_factor=8)
    return str(caught.value)


# Where it is


def test_models_without_one_are_as_before(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.config.components == COMPONENTS
    assert opened.preview_decoder is None
    assert "preview_decoder" not in opened.weight_files
    with pytest.raises(CheckpointError, match="got no preview_decoder in this base model"):
        opened.component_files("preview_decoder")


def test_one_is_found_in_the_checkpoint_and_runs_last(preview_checkpoint: Path) -> None:
    opened = open_checkpoint(preview_checkpoint)
    own = preview_checkpoint / "preview_decoder"
    assert opened.config.components == (*COMPONENTS, "preview_decoder")
    assert opened.component_folder("preview_decoder") == own
    assert opened.component_files("preview_decoder") == (own / WEIGHTS,)


def test_one_from_elsewhere_is_taken_for_a_checkpoint_that_has_none(
    checkpoint: Path, preview: Path
) -> None:
    opened = open_checkpoint(checkpoint, preview_decoder=preview)
    assert opened.config.components == (*COMPONENTS, "preview_decoder")
    assert opened.component_folder("preview_decoder") == preview
    assert opened.component_files("preview_decoder") == (preview / WEIGHTS,)
    assert opened.component_folder("unet") == checkpoint / "unet"


def test_one_from_elsewhere_wins_over_the_checkpoints_own(
    preview_checkpoint: Path, preview: Path
) -> None:
    assert find_preview_decoder(preview_checkpoint, preview) == preview
    opened = open_checkpoint(preview_checkpoint, preview_decoder=preview)
    assert opened.component_files("preview_decoder") == (preview / WEIGHTS,)


def test_only_the_decoders_weights_are_its_own(preview_checkpoint: Path) -> None:
    file = preview_checkpoint / "preview_decoder" / WEIGHTS
    names = {name for name in load_file(file) if name.startswith("decoder.")}
    assert open_checkpoint(preview_checkpoint).stored_tensors("preview_decoder").keys() == names


# Weight variants


def in_variant(folder: Path, variant: str) -> Path:
    return folder / WEIGHTS.replace(".safetensors", f".{variant}.safetensors")


@pytest.fixture
def half(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that has fp16 files alone. Their content plays no part here."""
    folder = shutil.copytree(checkpoint, tmp_path / "half")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    return folder


def test_a_preview_decoder_without_the_variant_gives_its_plain_files(
    half: Path, preview: Path
) -> None:
    opened = open_checkpoint(half, variant="fp16", preview_decoder=preview)
    assert opened.component_files("preview_decoder") == (preview / WEIGHTS,)
    assert ".fp16." in opened.component_files("unet")[0].name


def test_a_preview_decoder_with_the_variant_gives_that(half: Path, preview: Path) -> None:
    shutil.copy(preview / WEIGHTS, in_variant(preview, "fp16"))
    shutil.copy(preview / WEIGHTS, in_variant(preview, "bf16"))
    opened = open_checkpoint(half, variant="fp16", preview_decoder=preview)
    assert opened.component_files("preview_decoder") == (in_variant(preview, "fp16"),)


def test_a_preview_decoder_of_one_variant_alone_says_how_to_ask_for_it(
    checkpoint: Path, preview: Path
) -> None:
    (preview / WEIGHTS).rename(in_variant(preview, "fp16"))
    with pytest.raises(CheckpointError, match=r"only as variant fp16.*--variant fp16"):
        open_checkpoint(checkpoint, preview_decoder=preview)


# What is refused


def test_a_fitting_one_is_not_refused(preview: Path) -> None:
    check_preview_decoder(preview, latent_channels=4, vae_scale_factor=8)


def test_a_config_from_before_later_settings_is_not_refused(preview: Path) -> None:
    change(preview, block_out_channels=..., shift_factor=..., upsample_fn=...)
    check_preview_decoder(preview, latent_channels=4, vae_scale_factor=8)


def test_a_folder_without_a_config_is_refused(preview: Path) -> None:
    (preview / "config.json").unlink()
    assert f"{preview}: got no config.json, want a preview decoder" in refusal(preview)
    assert "got no config.json" in refusal(preview / "absent")


def test_another_vae_is_refused(checkpoint: Path) -> None:
    message = refusal(checkpoint / "vae")
    assert "got 'AutoencoderKL', want 'AutoencoderTiny'" in message
    assert "madebyollin/taesdxl" in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": None}, "'_class_name': got None"),
        ({"latent_channels": 16}, "'latent_channels': got 16, want this model's 4"),
        ({"latent_channels": ...}, "'latent_channels': got None, want a positive int"),
        ({"out_channels": 4}, "'out_channels': got 4, want 3"),
        ({"num_decoder_blocks": [1, 1, 1]}, "got 4 pixels for one latent cell"),
        ({"upsampling_scaling_factor": 3}, "got 27 pixels for one latent cell"),
        ({"scaling_factor": 0}, "'scaling_factor': got 0.0, want a number above 0"),
        ({"scaling_factor": "one"}, "'scaling_factor': got 'one', want float"),
    ],
)
def test_one_that_does_not_fit_the_model_is_refused(
    changes: dict[str, object], told: str, preview: Path
) -> None:
    change(preview, **changes)
    message = refusal(preview)
    assert message.startswith(str(preview / "config.json"))
    assert told in message


def test_it_is_held_against_the_models_own_numbers(checkpoint: Path, preview: Path) -> None:
    change(preview, latent_channels=16)
    with pytest.raises(CheckpointError, match="got 16, want this model's 4"):
        read_sdxl_config(checkpoint, preview_decoder=preview)


def test_one_without_weights_is_refused(checkpoint: Path, preview: Path) -> None:
    (preview / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"taesd: got config\.json, want plain safetensors"):
        open_checkpoint(checkpoint, preview_decoder=preview)


def test_one_of_pickles_is_refused(checkpoint: Path, preview: Path) -> None:
    (preview / WEIGHTS).rename(preview / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickle files can run any code"):
        open_checkpoint(checkpoint, preview_decoder=preview)


def test_weights_that_do_not_fit_the_config_are_named(checkpoint: Path, preview: Path) -> None:
    tensors = load_file(preview / WEIGHTS)
    del tensors["decoder.layers.0.bias"]
    save_file(tensors, preview / WEIGHTS)
    opened = open_checkpoint(checkpoint, preview_decoder=preview)
    with pytest.raises(CheckpointError, match=r"1 missing \['decoder\.layers\.0\.bias'\]"):
        load_module(opened, "preview_decoder", dtype=torch.float32)


# The module


def latents(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scaling_factor", [1.0, 0.5])
def test_it_divides_by_the_scaling_factor_and_decodes_as_diffusers(
    scaling_factor: float, checkpoint: Path, preview: Path
) -> None:
    change(preview, scaling_factor=scaling_factor, latent_magnitude=7, latent_shift=0.1)
    opened = open_checkpoint(checkpoint, preview_decoder=preview)
    module = load_module(opened, "preview_decoder", dtype=torch.float32)
    with torch.no_grad():
        theirs = AutoencoderTiny.from_pretrained(preview)
        expected = theirs.decode(latents(2, 4, 5, 9) / scaling_factor).sample
        assert torch.equal(module(latents(2, 4, 5, 9))[0], expected)


def test_half_precision_stays_inside_it(preview_checkpoint: Path) -> None:
    opened = open_checkpoint(preview_checkpoint)
    module = load_module(opened, "preview_decoder", dtype=torch.float16)
    with torch.no_grad():
        (image,) = module(latents(1, 4, 8, 8))
    assert (image.dtype, image.shape) == (torch.float32, (1, 3, 64, 64))


def test_a_skeleton_of_it_takes_no_memory(preview_checkpoint: Path) -> None:
    opened = open_checkpoint(preview_checkpoint)
    skeleton, stored = skeleton_module(opened, "preview_decoder", dtype=torch.float32)
    assert stored.keys() == dict(skeleton.named_parameters()).keys()
    assert {part.untyped_storage().nbytes() for part in skeleton.parameters()} == {4}


def test_diffusers_has_nothing_to_warn_of(
    preview_checkpoint: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    load_module(open_checkpoint(preview_checkpoint), "preview_decoder", dtype=torch.float32)
    assert not caplog.records
    assert "AutoencoderTiny" not in capfd.readouterr().err
