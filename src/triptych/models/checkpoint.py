"""Opening an SDXL checkpoint in diffusers layout without reading its weights.

A checkpoint is a folder with model_index.json and one folder a network. Opening it reads configs
and looks for weight files; weights are memory-mapped later, one component at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from triptych.errors import CheckpointError
from triptych.models.composition import COMPOSITION_NAME, Composition, read_composition
from triptych.models.hub import local_path
from triptych.models.preview_decoder import PREVIEW_DECODER_FOLDER, find_preview_decoder
from triptych.models.sdxl import SdxlConfig, read_sdxl_config
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weight_files import find_weight_files, has_variant, read_network
from triptych.types import ComponentName

NETWORK_FOLDERS: Mapping[ComponentName, str] = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
    "preview_decoder": PREVIEW_DECODER_FOLDER,
}
"""Where each component's config lies, and its weights; the VAE's halves share a folder."""

_PREFIXES: Mapping[ComponentName, tuple[str, ...]] = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
    "preview_decoder": ("decoder.",),
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An SDXL checkpoint that was found whole. No weight has been read.

    Attributes:
        folder: the checkpoint's folder.
        config: what its configs say.
        variant: the weight variant in use, such as "fp16", or None for the plain files.
        weight_files: the safetensors files of each network's folder.
        preview_decoder: the preview decoder's folder, which may lie elsewhere; None without one.
        composition: where the weights lie and how they are made; None where they lie in `folder`.
    """

    folder: Path
    config: SdxlConfig
    variant: str | None
    weight_files: Mapping[str, tuple[Path, ...]]
    preview_decoder: Path | None = None
    composition: Composition | None = None

    def component_folder(self, component: ComponentName) -> Path:
        """The folder that holds a component's config and weights; the VAE's halves share one."""
        if component == "preview_decoder" and self.preview_decoder is not None:
            return self.preview_decoder
        return self.folder / NETWORK_FOLDERS[component]

    def component_files(self, component: ComponentName) -> tuple[Path, ...]:
        """The safetensors files that hold a component's weights.

        Raises:
            CheckpointError: this model has no such component.
        """
        if component not in self.config.components:
            raise CheckpointError(
                f"{self.folder}: got no {component} in this {self.config.kind} model, "
                f"want one of {', '.join(self.config.components)}."
            )
        return self.weight_files[NETWORK_FOLDERS[component]]

    def stored_tensors(self, component: ComponentName) -> dict[str, StoredTensor]:
        """A component's weights by the names its module uses. Reads headers only.

        Raises:
            CheckpointError: a file is truncated or is not safetensors.
        """
        prefixes = _PREFIXES.get(component, ("",))
        network = self.network_tensors(NETWORK_FOLDERS[component])
        return {name: tensor for name, tensor in network.items() if name.startswith(prefixes)}

    def network_tensors(self, network: str) -> Mapping[str, StoredTensor]:
        """The weights in one network's folder; the VAE's halves share one.

        Raises:
            CheckpointError: a file is truncated or is not safetensors.
        """
        if self.composition is not None and network in self.composition.networks:
            return self.composition.networks[network]
        return read_network(self.weight_files[network])

    def recorded_sha256(self, component: ComponentName) -> dict[str, str]:
        """Of each file a component's weights come from, as composed; empty where not composed."""
        network = NETWORK_FOLDERS[component]
        if self.composition is None or network not in self.composition.networks:
            return {}
        return {file.label: file.sha256 for file in self.composition.network_files(network)}


def open_checkpoint(
    path: Path, *, variant: str | None = None, preview_decoder: Path | None = None
) -> Checkpoint:
    """Find an SDXL checkpoint's configs and weight files; read no weights.

    Args:
        path: a folder in diffusers layout, or a model's id on the hub that is in the cache.
        variant: take files such as model.fp16.safetensors instead of the plain ones. A preview
            decoder is published by itself: it gives its plain ones where it has no such files.
        preview_decoder: the folder of a preview decoder that is elsewhere. It is taken instead of
            the checkpoint's own.

    Raises:
        CheckpointError: the folder is not an SDXL checkpoint, the preview decoder is not one for
            it, a network's weights are missing, or they are pickle files.
    """
    path = local_path(path)
    if path.is_file():
        raise CheckpointError(
            f"{path}: got a single file, want a folder in diffusers layout. Make one that stands "
            f"for it, without a copy: triptych compose {path} OUT"
        )
    if not (path / "model_index.json").is_file():
        raise CheckpointError(
            f"{path}: got no model_index.json, want a checkpoint in diffusers layout."
        )
    config = read_sdxl_config(path, preview_decoder=preview_decoder)
    preview = find_preview_decoder(path, preview_decoder)
    opened = Checkpoint(
        folder=path, config=config, variant=variant, weight_files={}, preview_decoder=preview
    )
    if (path / COMPOSITION_NAME).is_file():
        return _open_composed(opened, given_preview=preview_decoder)
    folders = {NETWORK_FOLDERS[name] for name in config.components} - {PREVIEW_DECODER_FOLDER}
    weight_files = {
        name: find_weight_files(path / name, variant=variant) for name in sorted(folders)
    }
    if preview is not None:
        weight_files[PREVIEW_DECODER_FOLDER] = find_weight_files(
            preview, variant=variant if has_variant(preview, variant) else None
        )
    return replace(opened, weight_files=weight_files)


def _open_composed(opened: Checkpoint, *, given_preview: Path | None) -> Checkpoint:
    """A checkpoint whose weights lie where composition.json says."""
    if opened.variant is not None:
        raise CheckpointError(
            f"{opened.folder}: got variant {opened.variant!r} of a composed checkpoint, want none: "
            "it was composed of one already. Leave --variant out."
        )
    composition = read_composition(opened.folder)
    networks = dict(composition.networks)
    if given_preview is not None:
        networks.pop(PREVIEW_DECODER_FOLDER, None)
        composition = replace(composition, networks=networks)
    wanted = {NETWORK_FOLDERS[name] for name in opened.config.components}
    if given_preview is not None:
        wanted.remove(PREVIEW_DECODER_FOLDER)
    missing = sorted(wanted - networks.keys())
    if missing:
        raise CheckpointError(
            f"{opened.folder / COMPOSITION_NAME}: got no weights of {', '.join(missing)}, want "
            "them, as its configs say. Compose again."
        )
    weight_files = {
        name: tuple(file.path for file in composition.network_files(name)) for name in networks
    }
    if given_preview is not None:
        weight_files[PREVIEW_DECODER_FOLDER] = find_weight_files(given_preview, variant=None)
    return replace(opened, composition=composition, weight_files=weight_files)
