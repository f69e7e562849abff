"""A U-Net or VAE that is published by itself: a folder of diffusers, or a file in either layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, final

from triptych.errors import CheckpointError
from triptych.models.configs import JsonObject, read_json
from triptych.models.original_layout import unet_tensors, vae_tensors
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weight_files import find_weight_files, has_variant, read_network

NetworkName: TypeAlias = Literal["unet", "vae"]
"""Networks that are published by themselves, by diffusers' folders."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What tells a network, and its layout.

    Attributes:
        class_name: diffusers' class.
        prefix: of its weights in a single file of a whole model.
        weight: one that diffusers' layout has.
        original_weight: one that only the original layout has.
        renamed: from the original layout to diffusers'.
    """

    class_name: str
    prefix: str
    weight: str
    original_weight: str
    renamed: Callable[[Mapping[str, StoredTensor]], dict[str, StoredTensor]]


_LAYOUTS: Final[Mapping[NetworkName, _Layout]] = {
    "unet": _Layout(
        class_name="UNet2DConditionModel",
        prefix="model.diffusion_model.",
        weight="add_embedding.linear_1.weight",
        original_weight="label_emb.0.0.weight",
        renamed=unet_tensors,
    ),
    "vae": _Layout(
        class_name="AutoencoderKL",
        prefix="first_stage_model.",
        weight="decoder.conv_norm_out.weight",
        original_weight="decoder.norm_out.weight",
        renamed=vae_tensors,
    ),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSource:
    """A network as it was found. No weight has been read.

    Attributes:
        tensors: its weights by diffusers' names.
        config: its config.json; None where there is none beside the file.
    """

    tensors: Mapping[str, StoredTensor]
    config: JsonObject | None


def find_network(network: NetworkName, path: Path, *, variant: str | None = None) -> NetworkSource:
    """Find one network's weights and config.

    Args:
        network: which.
        path: a folder with config.json and weights, a checkpoint that has such a folder, or a
            safetensors file in diffusers' or the original layout, with or without other networks.
        variant: take files such as model.fp16.safetensors where the folder has them.

    Raises:
        CheckpointError: there is no such network.
    """
    layout = _LAYOUTS[network]
    if path.is_file():
        config_path = path.with_name("config.json")
        config = read_json(config_path) if config_path.is_file() else {}
        return NetworkSource(
            tensors=_named(layout, read_network([path]), where=path),
            config=config if config.get("_class_name") == layout.class_name else None,
        )
    folder = path / network if (path / network).is_dir() else path
    config = read_json(folder / "config.json")
    if config.get("_class_name") != layout.class_name:
        raise CheckpointError(
            f"{folder}/config.json '_class_name': got {config.get('_class_name')!r}, want "
            f"{layout.class_name!r}, as SDXL's {network} is."
        )
    files = find_weight_files(folder, variant=variant if has_variant(folder, variant) else None)
    return NetworkSource(tensors=_named(layout, read_network(files), where=folder), config=config)


def _named(
    layout: _Layout, tensors: Mapping[str, StoredTensor], *, where: Path
) -> dict[str, StoredTensor]:
    inside = {
        name.removeprefix(layout.prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(layout.prefix)
    }
    found = inside or tensors
    if layout.original_weight in found:
        return layout.renamed(found)
    if layout.weight in found:
        return dict(found)
    raise CheckpointError(
        f"{where}: got {', '.join(sorted(tensors)[:3]) or 'no tensors'}, want weights of an SDXL "
        f"{layout.class_name}, such as {layout.weight}."
    )
