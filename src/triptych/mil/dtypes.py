"""The element types of ML programs: their codes in files, their widths, how they are unpacked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.types import Array


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """One element type.

    Attributes:
        name: NumPy's name, or for types that NumPy lacks a name of the same build, as "uint6".
        bits: width of one stored element.
        container: the NumPy dtype that holds an unpacked element.
    """

    name: str
    bits: int
    container: str

    def size_bytes(self, count: int) -> int:
        """How many bytes so many elements occupy in a file; the last byte may be part empty."""
        return -(-count * self.bits // 8)

    def unpack(self, raw: Array, count: int) -> Array:
        """Stored bytes as elements; a view where an element fills whole bytes.

        Smaller elements are packed from each byte's least significant bit upwards, and may lie
        across two bytes.

        Source: defs iOS16/constexpr_ops.py, constexpr_lut_to_dense, "Notes".
        """
        if self.bits % 8 == 0:
            return raw[: self.size_bytes(count)].view(self.container)
        unpacked = np.empty(count, np.uint8)
        # In parts, so that the bits, one to a byte, never need eight times the room.
        for start in range(0, count, _UNPACKED_AT_ONCE):
            stop = min(start + _UNPACKED_AT_ONCE, count)
            unpacked[start:stop] = self._unpack_part(raw, start, stop)
        if np.issubdtype(self.container, np.signedinteger):
            sign = np.uint8(1 << (self.bits - 1))
            unpacked = (unpacked ^ sign) - sign
        return unpacked.view(self.container)

    def _unpack_part(self, raw: Array, start: int, stop: int) -> Array:
        first, last = start * self.bits // 8, self.size_bytes(stop)
        bits = np.unpackbits(raw[first:last], bitorder="little")
        rows = bits[: (stop - start) * self.bits].reshape(-1, self.bits)
        return np.packbits(rows, axis=1, bitorder="little")[:, 0]


_UNPACKED_AT_ONCE = 1 << 20  # elements; a multiple of 8, so that every part begins with a byte


def _types(*names_and_bits: tuple[int, str, int, str]) -> Mapping[int, ElementType]:
    return {
        code: ElementType(name=name, bits=bits, container=container)
        for code, name, bits, container in names_and_bits
    }


PROGRAM_TYPES: Mapping[int, ElementType] = _types(
    (1, "bool", 8, "bool"),
    (10, "float16", 16, "float16"),
    (11, "float32", 32, "float32"),
    (21, "int8", 8, "int8"),
    (22, "int16", 16, "int16"),
    (23, "int32", 32, "int32"),
    (25, "int4", 4, "int8"),
    (31, "uint8", 8, "uint8"),
    (32, "uint16", 16, "uint16"),
    (33, "uint32", 32, "uint32"),
    (35, "uint4", 4, "uint8"),
    (36, "uint2", 2, "uint8"),
    (37, "uint1", 1, "uint8"),
    (38, "uint6", 6, "uint8"),
    (39, "uint3", 3, "uint8"),
)
"""By code in a program. Source: MIL.proto, enum DataType."""

STRING_CODE = 2
