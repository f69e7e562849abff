"""Weights in another dtype without holding them: in files, mapped, or one layer at a time.

Imports torch when it is itself imported, so import it inside the function that needs it.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor, nn

from triptych.types import Array

_WIDENED_AT_ONCE = 1 << 18
"""Parameters of fewer elements are widened when a module is built: norms, biases, and whatever a
module asks for its first parameter's dtype."""


def converted_on_disk(tensor: Tensor, dtype: torch.dtype, *, scratch: Path) -> Tensor:
    """A weight in another dtype; where it has to be converted, in a mapped file without a name.

    Args:
        tensor: the weight, mapped from the checkpoint.
        dtype: the dtype wanted.
        scratch: a folder on a filesystem with room for it. The file is gone when the tensor is.
    """
    if tensor.dtype == dtype or tensor.numel() == 0:
        return tensor.to(dtype)
    numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
    with TemporaryFile(dir=scratch) as stream:
        copy: Array = np.memmap(stream, dtype=numpy_dtype, mode="w+", shape=tuple(tensor.shape))
    copy[...] = tensor.to(dtype).numpy()
    return torch.from_numpy(copy)


def widen_on_use(module: nn.Module, dtype: torch.dtype) -> None:
    """Make each layer convert its large weights when it is called, and forget them afterwards.

    Small parameters are converted now. What the module computes is what it would with every weight
    converted: the values are the same.
    """
    for layer in module.modules():
        large: dict[str, Tensor] = {}
        for name, weight in layer.named_parameters(recurse=False):
            if weight.numel() < _WIDENED_AT_ONCE or weight.dtype == dtype:
                weight.data = weight.data.to(dtype)
            else:
                large[name] = weight.data
        if large:
            layer.register_forward_pre_hook(_set_weights(large, dtype))
            layer.register_forward_hook(_restore_weights(large), always_call=True)


def _set_weights(
    stored: dict[str, Tensor], dtype: torch.dtype
) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def set_weights(layer: nn.Module, _arguments: tuple[object, ...]) -> None:
        for name, weight in stored.items():
            layer.get_parameter(name).data = weight.to(dtype)

    return set_weights


def _restore_weights(
    stored: dict[str, Tensor],
) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def restore_weights(layer: nn.Module, _arguments: tuple[object, ...], _result: object) -> None:
        for name, weight in stored.items():
            layer.get_parameter(name).data = weight

    return restore_weights
