"""A VAE that is published by itself: a folder of diffusers, or a file in either layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.errors import CheckpointError
from triptych.models.configs import JsonObject, read_json
from triptych.models.original_layout import vae_tensors
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weight_files import find_weight_files, has_variant, read_network

VAE_PREFIX = "first_stage_model."
"""What the VAE's weights are called with in a single file of a whole model."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSource:
    """A VAE as it was found. No weight has been read.

    Attributes:
        tensors: its weights by diffusers' names.
        config: its config.json; None where there is none beside the file.
    """

    tensors: Mapping[str, StoredTensor]
    config: JsonObject | None


def read_vae(path: Path, *, variant: str | None = None) -> VaeSource:
    """Find a VAE's weights and config.

    Args:
        path: a folder with config.json and weights, a checkpoint with such a folder in vae/, or a
            safetensors file in diffusers' or the original layout, with or without other networks.
        variant: take files such as model.fp16.safetensors where the folder has them.

    Raises:
        CheckpointError: there is no VAE.
    """
    if path.is_file():
        config_path = path.with_name("config.json")
        config = read_json(config_path) if config_path.is_file() else None
        if config is not None and config.get("_class_name") != "AutoencoderKL":
            config = None
        return VaeSource(tensors=_named(read_network([path]), where=path), config=config)
    folder = path / "vae" if (path / "vae").is_dir() else path
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(
            f"{folder}/config.json '_class_name': got {config.get('_class_name')!r}, want "
            "'AutoencoderKL'. SDXL's VAE is of that class."
        )
    files = find_weight_files(folder, variant=variant if has_variant(folder, variant) else None)
    return VaeSource(tensors=_named(read_network(files), where=folder), config=config)


def _named(tensors: Mapping[str, StoredTensor], *, where: Path) -> dict[str, StoredTensor]:
    prefixed = {
        name.removeprefix(VAE_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(VAE_PREFIX)
    }
    found = prefixed or tensors
    if "decoder.conv_in.weight" not in found:
        raise CheckpointError(
            f"{where}: got {', '.join(sorted(tensors)[:3]) or 'no tensors'}, want a VAE's weights, "
            "such as decoder.conv_in.weight."
        )
    return vae_tensors(found) if "encoder.norm_out.weight" in found else dict(found)
