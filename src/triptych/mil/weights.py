"""Weight files: records of raw elements, mapped into memory and read when they are used.

A file begins with 64 bytes of header. Each weight has a record of 64 bytes, at the offset that the
program names, which says where its elements lie. The numbers are little-endian.

Source: coremltools, MILBlob/Blob/StorageFormat.hpp, storage format 2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from triptych.errors import BundleError
from triptych.mil.dtypes import ElementType
from triptych.types import Array

_RECORD = np.dtype(
    [
        ("sentinel", "<u4"),
        ("element_type", "<u4"),
        ("size_bytes", "<u8"),
        ("offset", "<u8"),
    ]
)
_RECORD_BYTES = 64
_SENTINEL = 0xDEADBEEF

_ELEMENT_TYPES: Mapping[int, str] = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
"""Source: coremltools, MILBlob/Blob/BlobDataType.hpp."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight in a file. Making one reads its record, not its elements.

    Attributes:
        element_type: how its elements are stored.
        shape: its axes.
        raw: its bytes, mapped from the file and read-only.
    """

    element_type: ElementType
    shape: tuple[int, ...]
    raw: Array

    def load(self) -> Array:
        """The elements: still mapped where one fills whole bytes, else unpacked into memory."""
        return self.element_type.unpack(self.raw, math.prod(self.shape)).reshape(self.shape)


@final
class WeightFiles:
    """The weight files beside one program, each mapped once."""

    def __init__(self, model_folder: Path) -> None:
        self._model_folder = model_folder
        self._mapped: dict[str, Array] = {}

    def weight(
        self, file_name: str, offset: int, *, element_type: ElementType, shape: tuple[int, ...]
    ) -> Weight:
        """One weight, its record checked against what the program says of it.

        Args:
            file_name: as the program writes it, beginning with "@model_path/".
            offset: where its record begins.
            element_type: by the program.
            shape: by the program.

        Raises:
            BundleError: the file is missing, ends too early, or holds something else there.
        """
        mapped = self._map(file_name)
        where = f"{self._path(file_name)}: the weight at byte {offset}"
        if offset + _RECORD_BYTES > mapped.size:
            raise BundleError(
                f"{where}: got a file of {mapped.size} bytes, want its record there. "
                "The file is cut off, or of another program."
            )
        record = mapped[offset : offset + _RECORD.itemsize].view(_RECORD)[0]
        if record["sentinel"] != _SENTINEL:
            raise BundleError(
                f"{where}: got {int(record['sentinel']):#x}, want a record's mark {_SENTINEL:#x}. "
                "The file is damaged, or of another program."
            )
        stored = _ELEMENT_TYPES.get(int(record["element_type"]), "an unknown type")
        size_bytes = element_type.size_bytes(math.prod(shape))
        if (stored, int(record["size_bytes"])) != (element_type.name, size_bytes):
            raise BundleError(
                f"{where}: got {record['size_bytes']} bytes of {stored}, want {size_bytes} bytes "
                f"of {element_type.name} for {list(shape)}. The file is of another program."
            )
        first = int(record["offset"])
        if first + size_bytes > mapped.size:
            raise BundleError(
                f"{where}: got a file of {mapped.size} bytes, want {first + size_bytes}. "
                "The file is cut off."
            )
        raw = mapped[first : first + size_bytes]
        return Weight(element_type=element_type, shape=shape, raw=raw)

    def _path(self, file_name: str) -> Path:
        return self._model_folder / file_name.removeprefix("@model_path/")

    def _map(self, file_name: str) -> Array:
        if file_name not in self._mapped:
            path = self._path(file_name)
            if not path.resolve().is_relative_to(self._model_folder.resolve()):
                raise BundleError(
                    f"{self._model_folder}: got the weight file {file_name!r}, want one in this "
                    "folder. Do not trust this package."
                )
            try:
                self._mapped[file_name] = np.memmap(path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                raise BundleError(
                    f"{path}: got {error}, want the weights of the program beside it."
                ) from error
        return self._mapped[file_name]
