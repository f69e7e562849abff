"""The names of weights in single files as Stability AI published them, and diffusers' names.

Nothing is read here: names go in, names or recipes come out.

Source:
    diffusers 0.39 loaders/single_file_utils.py: convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint, convert_open_clip_checkpoint; the original modules are
    Stability-AI/generative-models sgm/modules/diffusionmodules/openaimodel.py and model.py.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from triptych.models.stored_tensor import StoredTensor

_UNET_MODULES: Final = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}

_RESNET_MODULES: Final = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_MIDDLE_BLOCKS: Final = ("resnets.0", "attentions.0", "resnets.1")

_VAE_MODULES: Final = {
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
}

_OPEN_CLIP_MODULES: Final = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}

_OPEN_CLIP_LAYER: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def unet_name(name: str, *, layers_per_block: int, separator: str = ".") -> str | None:
    """Diffusers' name of a U-Net's module or weight; None where the original has no such module.

    Args:
        name: without `model.diffusion_model.`.
        layers_per_block: residual layers of one level on the way down: 2 in SDXL.
        separator: what stands between parts of the name, in what is given and returned. LoRAs of
            Kohya's scripts have "_".
    """
    found = re.fullmatch(
        r"(input_blocks|output_blocks|middle_block)S(\d+)S(?:(\d+)S)?(.+)".replace("S", separator),
        name,
    )
    top_level = _renamed(name, _UNET_MODULES, separator)
    if top_level is not None or found is None:
        return top_level
    part, number, inner, rest = found[1], int(found[2]), found[3], found[4]
    if part == "middle_block":
        rest = rest if inner is None else f"{inner}{separator}{rest}"
        if number >= len(_MIDDLE_BLOCKS):
            return None
        block, place = "mid_block", _MIDDLE_BLOCKS[number]
    else:
        level, layer = divmod(
            number - 1 if part == "input_blocks" else number, layers_per_block + 1
        )
        block = f"{'down' if part == 'input_blocks' else 'up'}_blocks.{level}"
        place = f"{'resnets' if inner == '0' else 'attentions'}.{layer}"
        resampler = _renamed(
            rest, {"op": "downsamplers.0.conv", "conv": "upsamplers.0.conv"}, separator
        )
        if resampler is not None:
            return f"{block}.".replace(".", separator) + resampler
    inside = _renamed(rest, _RESNET_MODULES, separator) if place.startswith("res") else rest
    return None if inside is None else f"{block}.{place}.".replace(".", separator) + inside


def vae_name(name: str, *, num_levels: int) -> str:
    """Diffusers' name of a VAE's weight.

    Args:
        name: without `first_stage_model.`.
        num_levels: resolutions; the original counts the decoder's from the finest.
    """
    half, dot, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    found = re.fullmatch(r"(?:down|up)\.(\d+)\.(block|downsample|upsample)\.(.+)", rest)
    if found is None:
        return half + dot + (_renamed(rest, _VAE_MODULES, ".") or rest)
    number, kind, inside = int(found[1]), found[2], found[3]
    block = f"down_blocks.{number}" if half == "encoder" else f"up_blocks.{num_levels - 1 - number}"
    if kind != "block":
        return f"{half}.{block}.{kind}rs.0.{inside}"
    index, _, module = inside.partition(".")
    return f"{half}.{block}.resnets.{index}.{_renamed(module, _VAE_MODULES, '.') or module}"


def vae_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """A VAE's weights by diffusers' names; attention's 1 x 1 convolutions as matrices."""
    levels = {name.split(".")[2] for name in tensors if name.startswith("encoder.down.")}
    named = {vae_name(name, num_levels=len(levels)): tensor for name, tensor in tensors.items()}
    return {
        name: replace(tensor, shape=tensor.shape[:2]) if ".attentions." in name else tensor
        for name, tensor in named.items()
    }


def open_clip_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """An OpenCLIP text encoder's weights by the names of transformers' CLIPTextModelWithProjection.

    The original keeps queries, keys and values as one matrix, and the projection transposed.
    """
    named: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        named.update(_open_clip_tensor(name, tensor))
    return named


def _open_clip_tensor(name: str, tensor: StoredTensor) -> Iterable[tuple[str, StoredTensor]]:
    if name == "text_projection":
        made = replace(tensor, transposed=True, shape=tensor.shape[::-1])
        return [("text_projection.weight", made)]
    found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if found is None:
        return [(_renamed(name, _OPEN_CLIP_MODULES, ".") or name, tensor)]
    layer, inside = f"text_model.encoder.layers.{found[1]}", found[2]
    stacked = re.fullmatch(r"attn\.in_proj_(weight|bias)", inside)
    if stacked is None:
        return [(f"{layer}.{_renamed(inside, _OPEN_CLIP_LAYER, '.') or inside}", tensor)]
    length = tensor.shape[0] // 3
    return [
        (
            f"{layer}.self_attn.{letter}_proj.{stacked[1]}",
            replace(
                tensor,
                rows=(index * length, (index + 1) * length),
                shape=(length, *tensor.shape[1:]),
            ),
        )
        for index, letter in enumerate("qkv")
    ]


def _renamed(name: str, modules: Mapping[str, str], separator: str) -> str | None:
    """The name with the module it begins with replaced; None where it begins with none of them."""
    for old, new in modules.items():
        original = old.replace(".", separator)
        if name == original or name.startswith(original + separator):
            return new.replace(".", separator) + name[len(original) :]
    return None
