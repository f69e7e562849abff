"""Encoded prompts in a file: diffusers' names of the tensors in safetensors."""

import os
from pathlib import Path

import numpy as np

from triptych.errors import BrokenInputError, UsageError
from triptych.sampling.prompt_embeddings import PromptEmbeddings

_RANKS = {
    "prompt_embeds": 3,
    "pooled_prompt_embeds": 2,
    "negative_prompt_embeds": 3,
    "negative_pooled_prompt_embeds": 2,
}
"""Dimensions of each tensor: [prompts, 77, 2048] and [prompts, 1280] in SDXL base."""


def read_prompt_embeds(path: Path) -> PromptEmbeddings:
    """Embeddings from a .safetensors file; the model they are for says whether their sizes fit.

    Raises:
        BrokenInputError: the file is missing, unreadable, lacks a tensor, or holds another one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: bfloat16, unknown to NumPy
        raise BrokenInputError(
            f"{path}: got {error}, want a safetensors file of float32 or float16."
        ) from error
    unknown = sorted(tensors.keys() - _RANKS.keys())
    if unknown or not {"prompt_embeds", "pooled_prompt_embeds"} <= tensors.keys():
        raise BrokenInputError(
            f"{path}: got tensors {', '.join(sorted(tensors)) or 'none'}, want prompt_embeds and "
            "pooled_prompt_embeds, and negative_prompt_embeds and negative_pooled_prompt_embeds "
            "where there is a negative side."
        )
    for name, tensor in tensors.items():
        floats = np.issubdtype(tensor.dtype, np.floating)
        if tensor.ndim != _RANKS[name] or not floats or not np.isfinite(tensor).all():
            raise BrokenInputError(
                f"{path} {name!r}: got {tensor.dtype} {list(tensor.shape)}, "
                f"want finite float32 or float16 of {_RANKS[name]} dimensions."
            )
    floats32 = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return PromptEmbeddings(
        prompt_embeds=floats32["prompt_embeds"],
        pooled_prompt_embeds=floats32["pooled_prompt_embeds"],
        negative_prompt_embeds=floats32.get("negative_prompt_embeds"),
        negative_pooled_prompt_embeds=floats32.get("negative_pooled_prompt_embeds"),
    )


def check_new_file(path: Path, *, overwrite: bool) -> None:
    """Refuse to write over a file that is there, before anything is computed.

    Raises:
        UsageError: it exists and `overwrite` was not given, or it is a folder.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(
            f"{path}: got a path that exists, want a new one. "
            "Give another file, or --overwrite to replace it."
        )


def write_prompt_embeds(path: Path, embeddings: PromptEmbeddings) -> None:
    """Write embeddings as float32; the file appears when all of it is written."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in embeddings.tensors().items()},
            partial,
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
