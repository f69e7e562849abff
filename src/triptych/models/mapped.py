"""Weights in another dtype without holding them: in mapped files, or one layer at a time.

Imports torch when it is itself imported, so import it inside the function that needs it.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from triptych.models.stored_tensor import StoredTensor
from triptych.types import Array

_STORED: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

_WIDENED_AT_ONCE = 1 << 18
"""Parameters of fewer elements are widened when a module is built: norms, biases, and whatever a
module asks for its first parameter's dtype."""

_ReadTensor: TypeAlias = Callable[[], Tensor]


def kept_on_disk(
    tensor: Tensor, stored: StoredTensor, dtype: torch.dtype, *, scratch: Path
) -> Tensor:
    """A weight that takes no memory: mapped from the checkpoint, or from a file without a name.

    Args:
        tensor: the weight.
        stored: where it lies. Where it is made of several, or lies there in another dtype, a file
            is needed.
        dtype: the dtype wanted.
        scratch: a folder on a filesystem with room for it. The file is gone when the tensor is.
    """
    is_mapped = stored.is_plain and _STORED.get(stored.dtype) == dtype
    if is_mapped or tensor.numel() == 0:
        return tensor.to(dtype)
    with TemporaryFile(dir=scratch) as stream:
        place: Array = np.memmap(
            stream, dtype=np.uint8, mode="w+", shape=(tensor.numel() * dtype.itemsize,)
        )
    return torch.from_numpy(place).view(dtype).view(tensor.shape).copy_(tensor)


def is_large(stored: StoredTensor) -> bool:
    """Whether a weight is converted each time it is used, rather than once."""
    return math.prod(stored.shape) >= _WIDENED_AT_ONCE


def widen_on_use(
    module: nn.Module, dtype: torch.dtype, *, made: Mapping[str, _ReadTensor] | None = None
) -> None:
    """Make each layer convert its large weights when it is called, and forget them afterwards.

    Small parameters are converted now. What the module computes is what it would with every weight
    converted: the values are the same.

    Args:
        module: whose parameters are mapped from files.
        dtype: what layers compute in.
        made: for parameters that are placeholders, what makes the weight.
    """
    makers = made or {}
    for path, layer in module.named_modules():
        readers: dict[str, _ReadTensor] = {}
        for name, weight in layer.named_parameters(recurse=False):
            maker = makers.get(f"{path}.{name}" if path else name)
            if maker is not None:
                readers[name] = maker
            elif weight.numel() < _WIDENED_AT_ONCE or weight.dtype == dtype:
                weight.data = weight.data.to(dtype)
            else:
                readers[name] = _constantly(weight.data)
        if readers:
            kept = {name: layer.get_parameter(name).data for name in readers}
            layer.register_forward_pre_hook(_set_weights(readers, dtype))
            layer.register_forward_hook(_restore_weights(kept), always_call=True)


def _constantly(tensor: Tensor) -> _ReadTensor:
    return lambda: tensor


def _set_weights(
    readers: Mapping[str, _ReadTensor], dtype: torch.dtype
) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def set_weights(layer: nn.Module, _arguments: tuple[object, ...]) -> None:
        for name, read in readers.items():
            layer.get_parameter(name).data = read().to(dtype)

    return set_weights


def _restore_weights(
    kept: Mapping[str, Tensor],
) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def restore_weights(layer: nn.Module, _arguments: tuple[object, ...], _result: object) -> None:
        for name, weight in kept.items():
            layer.get_parameter(name).data = weight

    return restore_weights
