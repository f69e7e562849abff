"""Opening an SDXL checkpoint in diffusers layout without reading its weights.

A checkpoint is a folder with model_index.json and one folder a network. Opening it reads configs
and looks for weight files; weights are memory-mapped later, one component at a time.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.errors import CheckpointError
from triptych.models.configs import read_json
from triptych.models.preview_decoder import PREVIEW_DECODER_FOLDER, find_preview_decoder
from triptych.models.sdxl import SdxlConfig, read_sdxl_config
from triptych.types import ComponentName

_FOLDERS: Mapping[ComponentName, str] = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "unet": "unet",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
    "preview_decoder": PREVIEW_DECODER_FOLDER,
}

_PREFIXES: Mapping[ComponentName, tuple[str, ...]] = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
    "preview_decoder": ("decoder.",),
}

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")

# VAEs saved before diffusers 0.18 name the mid-block attention as the old AttentionBlock did.
# diffusers renames them on loading: modeling_utils.py, _convert_deprecated_attention_blocks.
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one weight lies and what it is, read from a safetensors header.

    Attributes:
        file: the safetensors file.
        key: its name in that file.
        shape: its lengths.
        dtype: safetensors' word for its dtype: "F32", "F16", "BF16".
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


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
    """

    folder: Path
    config: SdxlConfig
    variant: str | None
    weight_files: Mapping[str, tuple[Path, ...]]
    preview_decoder: Path | None = None

    def component_folder(self, component: ComponentName) -> Path:
        """The folder that holds a component's config and weights; the VAE's halves share one."""
        if component == "preview_decoder" and self.preview_decoder is not None:
            return self.preview_decoder
        return self.folder / _FOLDERS[component]

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
        return self.weight_files[_FOLDERS[component]]

    def stored_tensors(self, component: ComponentName) -> dict[str, StoredTensor]:
        """A component's weights by the names its module uses. Reads headers only.

        Raises:
            CheckpointError: a file is truncated or is not safetensors.
        """
        prefixes = _PREFIXES.get(component, ("",))
        tensors: dict[str, StoredTensor] = {}
        for file in self.component_files(component):
            for tensor in read_header(file):
                if tensor.key.startswith(prefixes) and not tensor.key.endswith("position_ids"):
                    tensors[_module_name(tensor.key)] = tensor
        return tensors


def open_checkpoint(
    path: Path, *, variant: str | None = None, preview_decoder: Path | None = None
) -> Checkpoint:
    """Find an SDXL checkpoint's configs and weight files; read no weights.

    Args:
        path: a folder in diffusers layout.
        variant: take files such as model.fp16.safetensors instead of the plain ones. A preview
            decoder is published by itself: it gives its plain ones where it has no such files.
        preview_decoder: the folder of a preview decoder that is elsewhere. It is taken instead of
            the checkpoint's own.

    Raises:
        CheckpointError: the folder is not an SDXL checkpoint, the preview decoder is not one for
            it, a network's weights are missing, or they are pickle files.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path}: got a single file, want a folder in diffusers layout. Load it with "
            "diffusers' StableDiffusionXLPipeline.from_single_file and save_pretrained it."
        )
    if not (path / "model_index.json").is_file():
        raise CheckpointError(
            f"{path}: got no model_index.json, want a checkpoint in diffusers layout."
        )
    config = read_sdxl_config(path, preview_decoder=preview_decoder)
    preview = find_preview_decoder(path, preview_decoder)
    folders = {_FOLDERS[component] for component in config.components} - {PREVIEW_DECODER_FOLDER}
    weight_files = {name: _find_weights(path / name, variant) for name in sorted(folders)}
    if preview is not None:
        has_variant = variant is not None and any(preview.glob(f"*.{variant}[.-]*"))
        weight_files[PREVIEW_DECODER_FOLDER] = _find_weights(
            preview, variant if has_variant else None
        )
    return Checkpoint(
        folder=path,
        config=config,
        variant=variant,
        weight_files=weight_files,
        preview_decoder=preview,
    )


def read_header(file: Path) -> Iterator[StoredTensor]:
    """What a safetensors file holds, without its data.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            for key in weights.keys():  # noqa: SIM118  safe_open is no mapping
                stored = weights.get_slice(key)
                shape = tuple(stored.get_shape())
                yield StoredTensor(file=file, key=key, shape=shape, dtype=stored.get_dtype())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: got {error}, want a whole safetensors file. Copy or download it again."
        ) from error


def _module_name(key: str) -> str:
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}{_NEW_ATTENTION[found[2]]}.", key)


def _find_weights(folder: Path, variant: str | None) -> tuple[Path, ...]:
    for stem in _STEMS:
        name = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
        if (folder / name).is_file():
            return (folder / name,)
        for index in _index_names(stem, variant):
            if (folder / index).is_file():
                return _read_shards(folder / index)
    raise CheckpointError(_no_weights_message(folder, variant))


def _index_names(stem: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return (f"{stem}.safetensors.index.json",)
    # diffusers and transformers put the variant before the last suffix; some tools before all.
    return (
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.{variant}.safetensors.index.json",
    )


def _read_shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: got no weight_map, want the index of a sharded checkpoint."
        )
    shards = tuple(index.parent / str(name) for name in sorted(set(weight_map.values())))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: got no {', '.join(missing)}, want all {len(shards)} shards. "
            "Download the missing ones."
        )
    return shards


def _no_weights_message(folder: Path, variant: str | None) -> str:
    wanted = f"variant {variant!r}" if variant else "plain"
    variants = sorted(
        {
            file.name.removesuffix(".safetensors").split(".")[1].split("-")[0]
            for stem in _STEMS
            for file in folder.glob(f"{stem}.*.safetensors")
        }
    )
    if variants:
        return (
            f"{folder}: got safetensors only as variant {', '.join(variants)}, want {wanted} ones. "
            f"Ask for it: --variant {variants[0]}"
        )
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: got {', '.join(pickles)}, want safetensors. Pickle files can run any code "
            "when they are loaded, so they are refused. Convert them where you trust them: load "
            "with diffusers, then save_pretrained(folder, safe_serialization=True)."
        )
    present = ", ".join(sorted(file.name for file in folder.glob("*"))) or "an empty folder"
    return f"{folder}: got {present}, want {wanted} safetensors weights."
