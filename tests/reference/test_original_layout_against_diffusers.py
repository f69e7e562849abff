"""The map of names from the original layout, key by key beside diffusers' own converters."""

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from triptych.models.original_layout import unet_name, vae_name

KINDS = ("weight", "bias")
UNET = {"layers_per_block": 2, "addition_embed_type": "text_time"}


def unet_modules(*, num_levels: int, without_attention: set[int]) -> list[str]:
    """Every module of an original U-Net that has weights."""
    resnet = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
    attention = ("norm", "proj_in", "proj_out", "transformer_blocks.1.attn2.to_out.0")
    modules = ["time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2"]
    modules += ["input_blocks.0.0", "out.0", "out.2"]
    for level in range(num_levels):
        for layer in range(2):
            block = f"input_blocks.{1 + level * 3 + layer}"
            modules += [f"{block}.0.{name}" for name in (*resnet, "skip_connection")]
            if level not in without_attention:
                modules += [f"{block}.1.{name}" for name in attention]
        if level < num_levels - 1:
            modules.append(f"input_blocks.{3 + level * 3}.0.op")
    for number in (0, 2):
        modules += [f"middle_block.{number}.{name}" for name in resnet]
    modules += [f"middle_block.1.{name}" for name in attention]
    for level in range(num_levels):
        has_attention = num_levels - 1 - level not in without_attention
        for layer in range(3):
            block = f"output_blocks.{level * 3 + layer}"
            modules += [f"{block}.0.{name}" for name in (*resnet, "skip_connection")]
            if has_attention:
                modules += [f"{block}.1.{name}" for name in attention]
        if level < num_levels - 1:
            modules.append(f"output_blocks.{level * 3 + 2}.{1 + has_attention}.conv")
    return modules


@pytest.mark.parametrize(
    ("num_levels", "without_attention"), [(3, {0}), (4, {0, 3})], ids=["base", "refiner"]
)
def test_every_unet_key_has_diffusers_name(num_levels: int, without_attention: set[int]) -> None:
    modules = unet_modules(num_levels=num_levels, without_attention=without_attention)
    keys = [f"{module}.{kind}" for module in modules for kind in KINDS]
    numbered = {
        f"model.diffusion_model.{key}": torch.tensor(index) for index, key in enumerate(keys)
    }
    converted = convert_ldm_unet_checkpoint(numbered, UNET)
    assert len(converted) == len(keys)
    expected = {keys[int(index)]: name for name, index in converted.items()}
    assert {key: unet_name(key, layers_per_block=2) for key in keys} == expected


def test_names_of_kohya_s_scripts_follow_the_same_map() -> None:
    for module in unet_modules(num_levels=3, without_attention={0}):
        named = unet_name(module, layers_per_block=2)
        assert named is not None
        flat = unet_name(module.replace(".", "_"), layers_per_block=2, separator="_")
        assert flat == named.replace(".", "_")


@pytest.mark.parametrize(
    "key", ["input_blocks.1.0.unknown.weight", "middle_block.3.norm.weight", "lora.weight", ""]
)
def test_what_the_original_unet_lacks_has_no_name(key: str) -> None:
    assert unet_name(key, layers_per_block=2) is None


def vae_keys() -> list[str]:
    keys = ["quant_conv.weight", "post_quant_conv.bias"]
    for half, part, resampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        keys += [f"{half}.{name}.weight" for name in ("conv_in", "conv_out", "norm_out")]
        for level in range(4):
            for block in range(3):
                keys += [
                    f"{half}.{part}.{level}.block.{block}.{name}.weight"
                    for name in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
                ]
            keys += [f"{half}.{part}.{level}.{resampler}.conv.{kind}" for kind in KINDS]
        for block in (1, 2):
            keys += [f"{half}.mid.block_{block}.{name}.weight" for name in ("norm1", "conv2")]
        keys += [f"{half}.mid.attn_1.{name}.bias" for name in ("norm", "q", "k", "v", "proj_out")]
    return keys


def test_every_vae_key_has_diffusers_name() -> None:
    keys = vae_keys()
    numbered = {f"first_stage_model.{key}": torch.tensor(n) for n, key in enumerate(keys)}
    blocks = ["a level"] * 4
    config = {"down_block_types": blocks, "up_block_types": blocks}
    converted = convert_ldm_vae_checkpoint(numbered, config)
    assert len(converted) == len(keys)
    expected = {keys[int(index)]: name for name, index in converted.items()}
    assert {key: vae_name(key, num_levels=4) for key in keys} == expected
