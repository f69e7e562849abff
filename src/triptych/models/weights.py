"""Reading weights, one at a time, as their recipes say.

Torch is imported when a tensor is read.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from triptych.models.stored_tensor import FileTensor, LowRankUpdate, StoredTensor

if TYPE_CHECKING:
    import torch

_ReadFileTensor: TypeAlias = Callable[[FileTensor], "torch.Tensor"]


def stream_tensors(
    stored: Mapping[str, StoredTensor], names: Iterable[str] | None = None
) -> "Iterator[tuple[str, torch.Tensor]]":
    """Weights one at a time, file by file, in the given order within a file.

    A plain one is mapped from its file: nothing is copied until a value is used. One that is made
    is in memory; let it go before the next. Numbers of 8 bits come as float16, which holds them
    exactly.

    Args:
        stored: where the weights lie, by name.
        names: which of them; None gives all.
    """
    wanted = list(stored if names is None else names)
    with contextlib.ExitStack() as stack:
        read = _make_reader(stack)
        for file in sorted({stored[name].file for name in wanted}):
            for name in wanted:
                if stored[name].file == file:
                    yield name, _make(stored[name], read)


def read_tensor(stored: StoredTensor) -> "torch.Tensor":
    """One weight: mapped where it is plain, in memory where it is made."""
    ((_, tensor),) = stream_tensors({"": stored})
    return tensor


def _make_reader(stack: contextlib.ExitStack) -> _ReadFileTensor:
    """A function that maps one tensor; it keeps files open until the stack ends."""
    from safetensors import safe_open

    opened: dict[Path, safe_open] = {}

    def read(source: FileTensor) -> "torch.Tensor":
        if source.file not in opened:
            opened[source.file] = stack.enter_context(safe_open(source.file, framework="pt"))
        tensor: torch.Tensor = opened[source.file].get_tensor(  # type: ignore[no-untyped-call]
            source.key
        )
        return tensor

    return read


def _make(stored: StoredTensor, read: _ReadFileTensor) -> "torch.Tensor":
    import torch

    tensor = read(FileTensor(file=stored.file, key=stored.key))
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.half()
    if stored.rows is not None:
        tensor = tensor[slice(*stored.rows)]
    if stored.transposed:
        tensor = tensor.t()
    if not stored.appended:
        tensor = tensor.reshape(stored.shape)
    if stored.updates:
        tensor = _updated(tensor, stored.updates, read)
    rows = [read(part).to(tensor.dtype).reshape(-1, stored.shape[-1]) for part in stored.appended]
    return torch.cat([tensor, *rows]) if rows else tensor


def _updated(
    tensor: "torch.Tensor", updates: Iterable[LowRankUpdate], read: _ReadFileTensor
) -> "torch.Tensor":
    """W + sum of scale x up @ down, added in float32 and rounded once to the dtype of W.

    Source:
        Hu et al. 2021, arXiv:2106.09685, equation 3; convolutions as peft's LoraConv2d.
    """
    total = tensor.float()
    for update in updates:
        total = total + update.scale * _product(update, read).reshape(total.shape)
    return total.to(tensor.dtype)


def _product(update: LowRankUpdate, read: _ReadFileTensor) -> "torch.Tensor":
    import torch

    up, down = read(update.up).float(), read(update.down).float()
    if update.mid is None:
        return up.flatten(1) @ down.flatten(1)
    # Three convolutions in a row, 1 x 1, k x k, 1 x 1, as one: LyCORIS, rebuild_weight.
    mid = read(update.mid).float()
    return torch.einsum("os,srhw,ri->oihw", up.flatten(1), mid, down.flatten(1))
