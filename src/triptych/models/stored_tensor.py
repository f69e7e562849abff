"""Where a weight lies and how it is made of what lies there: facts, no values."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from safetensors import safe_open

DTYPE_BYTES: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4
}  # fmt: skip
"""Bytes of one element, by safetensors' word for its dtype."""

_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """One tensor as it lies in a safetensors file.

    Attributes:
        file: the safetensors file.
        key: its name in that file.
    """

    file: Path
    key: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankUpdate:
    """What a LoRA adds to one weight: scale x up @ down.

    Attributes:
        up: [out, rank], or [out, rank, 1, 1].
        down: [rank, in], or [rank, in, height, width] for a convolution.
        mid: [rank, rank, height, width] of a convolution whose `down` is 1 x 1; else None.
        scale: the user's times alpha / rank.
    """

    up: FileTensor
    down: FileTensor
    mid: FileTensor | None = None
    scale: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one weight lies, what it is, and how it is made of what lies there.

    Rows are taken first, then it is transposed, then shaped; then updates are added, and rows
    appended.

    Attributes:
        file: the safetensors file.
        key: its name in that file.
        shape: its lengths, made.
        dtype: safetensors' word for its dtype: "F32", "F16", "BF16".
        rows: the first row taken and the one after the last; None takes all.
        transposed: it lies there as its transpose.
        updates: LoRAs to add, in float32; the sum is rounded to `dtype` once.
        appended: tensors [rows, width], or [width], that follow the last row of a matrix.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    rows: tuple[int, int] | None = None
    transposed: bool = False
    updates: tuple[LowRankUpdate, ...] = ()
    appended: tuple[FileTensor, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether its bytes lie in the file as they are; only the shape there may differ."""
        return not (self.rows or self.transposed or self.updates or self.appended)

    @property
    def files(self) -> set[Path]:
        """Every file it is made of."""
        updates = (
            part.file
            for update in self.updates
            for part in (update.up, update.down, update.mid)
            if part is not None
        )
        return {self.file, *updates, *(rows.file for rows in self.appended)}

    @property
    def size_bytes(self) -> int:
        """Of the made tensor, in its dtype."""
        return math.prod(self.shape) * DTYPE_BYTES.get(self.dtype, 4)


def read_header(file: Path) -> Iterator[StoredTensor]:
    """What a safetensors file holds, without its data.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    with _opened(file) as weights:
        for key in weights.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
            stored = weights.get_slice(key)  # type: ignore[no-untyped-call]
            shape = tuple(stored.get_shape())
            yield StoredTensor(file=file, key=key, shape=shape, dtype=stored.get_dtype())


def read_file_metadata(file: Path) -> dict[str, str]:
    """The texts in a safetensors file's header.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    with _opened(file) as weights:
        return dict(weights.metadata() or {})  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _opened(file: Path) -> "Iterator[safe_open]":
    from safetensors import SafetensorError, safe_open

    if file.suffix in _PICKLES:
        raise CheckpointError(
            f"{file}: got a pickle file, want safetensors. Pickle files can run any code when they "
            "are loaded, so they are refused. Convert it where you trust it."
        )
    try:
        with safe_open(file, framework="numpy") as weights:
            yield weights
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: got {error}, want a whole safetensors file. Copy or download it again."
        ) from error
