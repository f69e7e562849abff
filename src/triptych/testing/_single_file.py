"""A diffusers checkpoint as one file in the original layout, as published models come."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.dependencies import import_optional
from triptych.errors import UsageError

if TYPE_CHECKING:
    import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP_LEVEL = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = (
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("mid_block.attentions.0.to_", "mid.attn_1."),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("resnets", "block"),
    ("down_blocks", "down"),
)
_OPEN_CLIP = (
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.", ""),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)
_LAYERS_PER_BLOCK = 2


def write_single_file(
    checkpoint: Path, file: Path, *, dtype: str = "float32", extra: tuple[str, ...] = ()
) -> Path:
    """Write the networks of a checkpoint as one safetensors file in SDXL's original layout.

    Args:
        checkpoint: a folder in diffusers layout, with plain single files: a tiny checkpoint.
        file: the file to make.
        dtype: torch's name of the dtype to store.
        extra: names of empty tensors to put in besides, such as v_pred.

    Returns:
        `file`.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    import_optional("torch", extra="export")
    import torch
    from safetensors.torch import load_file, save_file

    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    networks = {
        path.name: load_file(path / f"{stems.get(path.name, 'model')}.safetensors")
        for path in sorted(checkpoint.iterdir())
        if path.name in ("text_encoder", "text_encoder_2", "unet", "vae")
    }
    tensors: dict[str, torch.Tensor] = {name: torch.zeros(0) for name in extra}
    for name, tensor in networks["unet"].items():
        tensors[f"model.diffusion_model.{_unet_name(name)}"] = tensor
    for name, tensor in networks["vae"].items():
        tensors.update(_vae_tensor(name, tensor))
    for name, tensor in networks.get("text_encoder", {}).items():
        tensors[f"conditioner.embedders.0.transformer.{name}"] = tensor
    number = 1 if "text_encoder" in networks else 0
    for name, tensor in _open_clip(networks["text_encoder_2"]).items():
        tensors[f"conditioner.embedders.{number}.model.{name}"] = tensor
    wanted = getattr(torch, dtype)
    save_file({name: tensor.to(wanted).contiguous() for name, tensor in tensors.items()}, file)
    return file


def _unet_name(name: str) -> str:
    for module, original in _TOP_LEVEL.items():
        if name.startswith(f"{module}."):
            return original + name.removeprefix(module)
    found = re.fullmatch(r"(\w+?)(?:_blocks\.(\d+)|_block)\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        raise UsageError(f"{name}: got a U-Net without SDXL's blocks, want a tiny checkpoint's.")
    part, level, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        module, _, weight = rest.partition(".")
        rest = f"{_RESNET[module]}.{weight}"
    inner = 0 if kind == "resnets" else 1
    if part == "mid":
        return f"middle_block.{2 * layer if inner == 0 else 1}.{rest}"
    if kind == "downsamplers":
        number = (level + 1) * (_LAYERS_PER_BLOCK + 1)
        return f"input_blocks.{number}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        # The finest level has no attention, and no upsampler either: SDXL base's levels.
        number = level * (_LAYERS_PER_BLOCK + 1) + _LAYERS_PER_BLOCK
        return f"output_blocks.{number}.2.{rest}"
    number = level * (_LAYERS_PER_BLOCK + 1) + layer
    if part == "down":
        return f"input_blocks.{number + 1}.{inner}.{rest}"
    return f"output_blocks.{number}.{inner}.{rest}"


def _vae_tensor(name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
    if ".attentions." in name and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    for new, original in _VAE:
        name = name.replace(new, original)
    # The decoder's levels are counted from the finest.
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{3 - int(found[1])}", name)
    return {f"first_stage_model.{name}": tensor}


def _open_clip(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    import torch

    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stacked = re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if stacked is None:
            is_projection = name == "text_projection.weight"
            original = "text_projection" if is_projection else _open_clip_name(name)
            renamed[original] = tensor.T if is_projection else tensor
        elif stacked[2] == "q":
            parts = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            original = _open_clip_name(f"{stacked[1]}.attn.in_proj_{stacked[3]}")
            renamed[original] = torch.cat(parts)
    return renamed


def _open_clip_name(name: str) -> str:
    for new, original in _OPEN_CLIP:
        name = name.replace(new, original)
    return name
