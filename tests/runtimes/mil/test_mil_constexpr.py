"""Compressed weights: unpacked bit for bit as coremltools unpacks them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import coremltools
import coremltools.optimize.coreml as compression
import numpy as np
import pytest
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, types
from coremltools.models import MLModel
from coremltools.optimize._utils import pack_elements_into_bits
from hypothesis import given
from hypothesis import strategies as st

from triptych.mil.dtypes import PROGRAM_TYPES
from triptych.mil.program import Program
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.runtimes._mil.operators.constexpr import DECOMPRESSORS
from triptych.runtimes._mil.values import Values

SaveProgram = Callable[..., Path]
Conversion = Callable[[], AbstractContextManager[None]]

RANDOM = np.random.default_rng(0)
SHAPE = (4, 6)


def integers(high: int, *shape: int, dtype: type = np.uint8, low: int = 0) -> np.ndarray:
    return RANDOM.integers(low, high, shape, dtype=dtype)


def halves(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float16)


def packed(elements: np.ndarray, bits: int) -> np.ndarray:
    result: np.ndarray = pack_elements_into_bits(elements.reshape(-1), bits)
    return result


MASK = integers(2, *SHAPE)
DATA = integers(256, *SHAPE)

CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    "affine, a number": (
        "iOS16",
        "constexpr_affine_dequantize",
        {
            "quantized_data": DATA,
            "scale": np.float16(0.013),
            "zero_point": np.uint8(130),
            "axis": 0,
        },
    ),
    "affine, an axis": (
        "iOS16",
        "constexpr_affine_dequantize",
        {
            "quantized_data": integers(127, *SHAPE, low=-128, dtype=np.int8),
            "scale": halves(6),
            "zero_point": integers(100, 6, low=-100, dtype=np.int8),
            "axis": -1,
        },
    ),
    "affine, single precision": (
        "iOS16",
        "constexpr_affine_dequantize",
        {
            "quantized_data": DATA,
            "scale": halves(4).astype(np.float32),
            "zero_point": integers(200, 4),
            "axis": 0,
        },
    ),
    **{
        f"table of iOS16, {bits} bits": (
            "iOS16",
            "constexpr_lut_to_dense",
            {
                "indices": packed(integers(2**bits, 3, 5, 7), bits),
                "lut": halves(2**bits),
                "shape": np.array([3, 5, 7], np.uint32),
            },
        )
        for bits in (1, 2, 4, 6, 8)
    },
    **{
        f"table of iOS18, {bits} bits": (
            "iOS18",
            "constexpr_lut_to_dense",
            {
                "indices": integers(2**bits, *SHAPE).astype(getattr(types, f"np_uint{bits}_dtype")),
                "lut": halves(2, 3, 2**bits, 1),
            },
        )
        for bits in (1, 2, 3, 4, 6)
    },
    "table of iOS18, bytes": (
        "iOS18",
        "constexpr_lut_to_dense",
        {"indices": DATA, "lut": halves(1, 1, 256, 1)},
    ),
    **{
        f"table of vectors, axis {axis}": (
            "iOS18",
            "constexpr_lut_to_dense",
            {
                "indices": integers(4, *SHAPE).astype(types.np_uint2_dtype),
                "lut": halves(2, 1, 4, 3),
                "vector_axis": axis,
            },
        )
        for axis in (0, 1, -1)
    },
    "mask of iOS16": (
        "iOS16",
        "constexpr_sparse_to_dense",
        {
            "nonzero_data": halves(int(MASK.sum())),
            "mask": packed(MASK, 1),
            "shape": np.array(SHAPE, np.uint32),
        },
    ),
    "mask of iOS18": (
        "iOS18",
        "constexpr_sparse_to_dense",
        {
            "nonzero_data": halves(int(MASK.sum())),
            "mask": MASK.astype(types.np_uint1_dtype),
        },
    ),
    "blocks, 4 bits": (
        "iOS18",
        "constexpr_blockwise_shift_scale",
        {
            "data": integers(8, *SHAPE, low=-8, dtype=np.int8).astype(types.np_int4_dtype),
            "scale": halves(2, 3),
        },
    ),
    "blocks, 8 bits and an offset": (
        "iOS18",
        "constexpr_blockwise_shift_scale",
        {"data": DATA, "scale": halves(4, 1), "offset": integers(256, 4, 1)},
    ),
    "blocks, floats": (
        "iOS18",
        "constexpr_blockwise_shift_scale",
        {"data": halves(*SHAPE), "scale": halves(2, 2), "offset": halves(2, 2)},
    ),
    "half precision meant as single": (
        "iOS16",
        "constexpr_cast",
        {"source_val": halves(*SHAPE), "output_dtype": "fp32"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_unpacks_as_coremltools_does(name: str, save_program: SaveProgram) -> None:
    target, operator, inputs = CASES[name]
    with Function({}, opset_version=getattr(coremltools.target, target)):
        want = getattr(Builder, operator)(**inputs).op.materialized_val_inference()

    def body(x: object) -> object:
        weight = getattr(Builder, operator)(**inputs, name="unpacked")
        wide = Builder.cast(x=weight, dtype="fp32") if want.dtype == np.float16 else weight
        return Builder.add(x=Builder.reduce_sum(x=x), y=wide)

    feed = {"x": np.zeros(2, np.float32)}
    program = open_program(save_program(body, feed, target=target))
    got = Values(program, mode="fp32").constant("unpacked")
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    assert operator in {operation.type for operation in program.operations}
    (result,) = run(program, feed).values()
    np.testing.assert_array_equal(result, want.astype(np.float32))


def test_no_decompression_is_without_a_test() -> None:
    assert {operator for _, operator, _ in CASES.values()} == DECOMPRESSORS.keys()


@given(
    bits=st.sampled_from([1, 2, 3, 4, 6]),
    count=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_elements_smaller_than_a_byte(bits: int, count: int, seed: int) -> None:
    elements = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    element_type = next(each for each in PROGRAM_TYPES.values() if each.name == f"uint{bits}")
    raw = packed(elements, bits)
    assert raw.size == element_type.size_bytes(count)
    np.testing.assert_array_equal(element_type.unpack(raw, count), elements)


def test_many_small_elements() -> None:
    """More than are unpacked at once."""
    elements = np.arange(3_000_001, dtype=np.uint32).astype(np.uint8) % 64
    element_type = next(each for each in PROGRAM_TYPES.values() if each.name == "uint6")
    raw = np.packbits(
        np.unpackbits(elements[:, None], axis=1, bitorder="little")[:, :6], bitorder="little"
    )
    np.testing.assert_array_equal(element_type.unpack(raw, elements.size), elements)


def test_signed_elements_smaller_than_a_byte() -> None:
    elements = np.arange(-8, 8, dtype=np.int8)
    element_type = next(each for each in PROGRAM_TYPES.values() if each.name == "int4")
    raw = packed(elements.view(np.uint8) & 15, 4)
    np.testing.assert_array_equal(element_type.unpack(raw, 16), elements)


def layers(x: object) -> object:
    for seed in range(3):
        weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32) / 8
        x = Builder.silu(x=Builder.linear(x=x, weight=weight.astype(np.float16)))
    return x


METHODS: dict[str, tuple[str, Callable[[MLModel], MLModel]]] = {
    "6-bit palette": (
        "iOS16",
        lambda model: compression.palettize_weights(
            model,
            compression.OptimizationConfig(
                compression.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=0)
            ),
        ),
    ),
    "6-bit grouped palette": (
        "iOS18",
        lambda model: compression.palettize_weights(
            model,
            compression.OptimizationConfig(
                compression.OpPalettizerConfig(
                    mode="uniform",
                    nbits=6,
                    granularity="per_grouped_channel",
                    group_size=16,
                    weight_threshold=0,
                )
            ),
        ),
    ),
    "int8": (
        "iOS16",
        lambda model: compression.linear_quantize_weights(
            model,
            compression.OptimizationConfig(
                compression.OpLinearQuantizerConfig(mode="linear", weight_threshold=0)
            ),
        ),
    ),
    "int4 blocks": (
        "iOS18",
        lambda model: compression.linear_quantize_weights(
            model,
            compression.OptimizationConfig(
                compression.OpLinearQuantizerConfig(
                    mode="linear_symmetric",
                    dtype="int4",
                    granularity="per_block",
                    block_size=16,
                    weight_threshold=0,
                )
            ),
        ),
    ),
    "pruned": (
        "iOS16",
        lambda model: compression.prune_weights(
            model,
            compression.OptimizationConfig(
                compression.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
            ),
        ),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_compressed_network_computes_what_its_decompressed_twin_does(
    method: str, save_program: SaveProgram, conversion: Conversion, tmp_path: Path
) -> None:
    target, compress = METHODS[method]
    feed = {"x": RANDOM.standard_normal((2, 64)).astype(np.float16)}
    original = save_program(layers, feed, target=target)
    compressed, plain = tmp_path / "compressed.mlpackage", tmp_path / "plain.mlpackage"
    with conversion():
        model = compress(MLModel(str(original), skip_model_load=True))
        model.save(str(compressed))
        compression.decompress_weights(model).save(str(plain))
        del model

    assert count_decompressions(open_program(compressed)) == 3
    assert count_decompressions(open_program(plain)) == 0
    for mode in ("fp32", "declared"):
        (got,) = run(open_program(compressed), feed, mode=mode).values()
        (want,) = run(open_program(plain), feed, mode=mode).values()
        np.testing.assert_array_equal(got, want)


def count_decompressions(program: Program) -> int:
    return sum(operation.is_decompression for operation in program.operations)
