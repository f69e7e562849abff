"""The safetensors files of one network in diffusers layout: variants, shards, and old names."""

import re
from collections.abc import Iterable
from pathlib import Path

from triptych.errors import CheckpointError
from triptych.models.configs import read_json
from triptych.models.stored_tensor import StoredTensor, read_header

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")

# VAEs saved before diffusers 0.18 name the mid-block attention as the old AttentionBlock did.
# diffusers renames them on loading: modeling_utils.py, _convert_deprecated_attention_blocks.
_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")
_NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_weight_files(folder: Path, *, variant: str | None) -> tuple[Path, ...]:
    """The safetensors files of one network's folder: a single one, or all shards.

    Raises:
        CheckpointError: there are none of this variant, a shard is missing, or they are pickles.
    """
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
    names = sorted({str(name) for name in weight_map.values()})
    elsewhere = [name for name in names if not name or Path(name).name != name]
    if elsewhere:
        raise CheckpointError(
            f"{index}: got the shard {elsewhere[0]!r}, want names of files beside the index."
        )
    shards = tuple(index.parent / name for name in names)
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


def has_variant(folder: Path, variant: str | None) -> bool:
    """Whether a folder has files of a variant; what is published by itself often has not."""
    return variant is not None and any(folder.glob(f"*.{variant}[.-]*"))


def read_network(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """One network's weights by the names that today's diffusers gives them. Reads headers only.

    Raises:
        CheckpointError: a file is truncated or is not safetensors.
    """
    return {
        _module_name(tensor.key): tensor
        for file in files
        for tensor in read_header(file)
        if not tensor.key.endswith("position_ids")
    }


def _module_name(key: str) -> str:
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}{_NEW_ATTENTION[found[2]]}.", key)
