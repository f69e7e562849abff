"""Noise to start from, out of a file."""

from pathlib import Path

import numpy as np

from triptych.errors import BrokenInputError
from triptych.types import Array, Latents


def read_noise(path: Path) -> Latents:
    """Unit noise from a .safetensors file (tensor "noise" or "latents") or a .npy file.

    Raises:
        BrokenInputError: the file is missing, unreadable or holds no such tensor.
    """
    try:
        noise = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    except (OSError, ValueError) as error:
        raise BrokenInputError(f"{path}: got {error}, want .safetensors or .npy noise.") from error
    if noise.ndim != 4 or not np.isfinite(noise).all():
        raise BrokenInputError(
            f"{path}: got {noise.dtype} {list(noise.shape)}, want finite noise "
            "[batch, 4, height_px/8, width_px/8]."
        )
    return noise.astype(np.float32)


def _read_npy(path: Path) -> Array:
    with path.open("rb") as stream:  # np.load takes archives too, and gives no array for them
        loaded: Array = np.lib.format.read_array(  # type: ignore[no-untyped-call]
            stream, allow_pickle=False
        )
    return loaded


def _read_safetensors(path: Path) -> Array:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise BrokenInputError(f"{path}: got {error}, want a safetensors file.") from error
    for name in ("noise", "latents"):
        if name in tensors:
            found: Array = tensors[name]
            return found
    raise BrokenInputError(f"{path}: got tensors {', '.join(tensors)}, want 'noise' or 'latents'.")
