"""Unpacking of compressed weights, in NumPy and in the dtype that coremltools unpacks to.

Definitions: defs iOS16/constexpr_ops.py, iOS18/compression.py. The results are coremltools' own,
bit for bit; two operators exist in two forms, of iOS16 with packed bits and of iOS18 with blocks.
"""

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from triptych.mil.dtypes import ElementType
from triptych.types import Array

Decompressor = Callable[[Mapping[str, Array]], Array]
"""Unpacks a weight from an operation's inputs, each as it is stored."""


def affine_dequantize(inputs: Mapping[str, Array]) -> Array:
    """Affine: scale * (quantized_data - zero_point); vectors run along an axis."""
    data, scale = inputs["quantized_data"], inputs["scale"]
    shape = [1] * data.ndim
    shape[int(inputs["axis"])] = -1
    zero_point, factor = (
        numbers.astype(np.float32).reshape(shape if numbers.ndim else ())
        for numbers in (inputs["zero_point"], scale)
    )
    return ((data.astype(np.float32) - zero_point) * factor).astype(scale.dtype)


def blockwise_shift_scale(inputs: Mapping[str, Array]) -> Array:
    """Affine by blocks: scale * (data - offset), computed in the dtype of the scale."""
    scale = inputs["scale"]
    data = inputs["data"].astype(scale.dtype)
    if "offset" in inputs:
        data = data - _spread(inputs["offset"], data.shape).astype(scale.dtype)
    result: Array = _spread(scale, data.shape) * data
    return result


def cast(inputs: Mapping[str, Array]) -> Array:
    """Half precision stored, single precision meant."""
    return inputs["source_val"].astype(np.float32)


def lut_to_dense(inputs: Mapping[str, Array]) -> Array:
    """Indices replaced by what a table, or the table of their block, holds for them."""
    indices, table = inputs["indices"], inputs["lut"]
    if "shape" in inputs:
        shape = tuple(int(length) for length in inputs["shape"])
        bits = table.size.bit_length() - 1
        packing = ElementType(name=f"uint{bits}", bits=bits, container="uint8")
        looked_up: Array = table[packing.unpack(indices, prod(shape))].reshape(shape)
        return looked_up
    vector_axis = int(inputs.get("vector_axis", np.array(-1))) % indices.ndim
    num_blocks, vector_size = table.shape[:-2], table.shape[-1]
    lengths = [size // count for size, count in zip(indices.shape, num_blocks, strict=True)]
    widths = [vector_size if axis == vector_axis else 1 for axis in range(indices.ndim)]
    dense = np.empty(np.multiply(indices.shape, widths), table.dtype)
    for block in np.ndindex(num_blocks):
        source, target = (
            tuple(
                slice(at * length * width, (at + 1) * length * width)
                for at, length, width in zip(block, lengths, each, strict=True)
            )
            for each in ([1] * indices.ndim, widths)
        )
        # Each index becomes a vector, which is laid along one axis.
        vectors = np.moveaxis(table[block][indices[source]], -1, vector_axis + 1)
        dense[target] = vectors.reshape(np.multiply(lengths, widths))
    return dense


def sparse_to_dense(inputs: Mapping[str, Array]) -> Array:
    """Stored elements where the mask is set, zeros elsewhere."""
    mask, elements = inputs["mask"], inputs["nonzero_data"]
    if "shape" in inputs:
        shape = tuple(int(length) for length in inputs["shape"])
        mask = np.unpackbits(mask, bitorder="little")[: prod(shape)].reshape(shape)
    dense = np.zeros(mask.shape, elements.dtype)
    dense[mask != 0] = elements
    return dense


def _spread(numbers: Array, shape: tuple[int, ...]) -> Array:
    """Numbers for blocks, repeated for each element of their block."""
    for axis, length in enumerate(shape):
        numbers = np.repeat(numbers, length // numbers.shape[axis], axis=axis)
    return numbers


DECOMPRESSORS: Mapping[str, Decompressor] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
