"""What programs say about themselves as a whole: what must be fed, how weights are stored."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from triptych.mil.program import Constant, Operation, Program
from triptych.mil.weights import Weight
from triptych.tensors import TensorSpec
from triptych.types import Precision

_FLOATS = ("float32", "float16")

MASKED = -1e4
"""What is added to attention scores where a token must not look. Half precision holds it, softmax
makes it zero, and palettes can be built around it.

Source: ml-stable-diffusion's torch2coreml.py; its issue 246 for what -inf does to k-means."""

_COMPRESSED_AS: Mapping[str, str] = {
    "constexpr_affine_dequantize": "quantized_data",
    "constexpr_blockwise_shift_scale": "data",
    "constexpr_sparse_to_dense": "nonzero_data",
    "constexpr_cast": "source_val",
}
"""The input of a decompression whose dtype is that of the stored weight."""


def fed_inputs(programs: Sequence[Program]) -> tuple[TensorSpec, ...]:
    """What must be fed to programs that follow one another.

    Every program's inputs, but for those that one before it computes.
    """
    computed: set[str] = set()
    fed: dict[str, TensorSpec] = {}
    for program in programs:
        fed |= {spec.name: spec for spec in program.inputs if spec.name not in computed}
        computed |= {spec.name for spec in program.outputs}
    return tuple(fed.values())


def declared_precision(programs: Sequence[Program]) -> Precision:
    """fp16 where any operator is declared to give float16, as all but a few then are."""
    steps = (step for program in programs for step in program.operations)
    halves = any(spec.dtype == "float16" for step in steps for spec in step.outputs)
    return "fp16" if halves else "fp32"


def weight_dtypes(program: Program) -> Counter[str]:
    """Elements by how they are stored: a dtype, or a palette of so many bits.

    Every constant array of floats counts but statistics and masks. Converters add zero biases and
    tables of frequencies, and keep one of several equal weights.
    """
    found = Counter[str]()
    others: set[str] = set()
    for step in program.operations:
        if step.is_decompression:
            others.update(name for names in step.inputs.values() for name in names)
            found[_stored_as(step, program)] += _size(step.outputs[0].shape)
        others.update(_not_learned(step, program))
    for name, constant in program.constants.items():
        dtype, shape = _dtype_and_shape(constant)
        if name not in others and dtype in _FLOATS and _size(shape) > 1:
            found[dtype] += _size(shape)
    return found


def _not_learned(step: Operation, program: Program) -> Iterator[str]:
    """Constants of one operation that a converter made: statistics of 0 and 1, causal masks."""
    if step.type == "batch_norm":
        yield from (*step.inputs["mean"], *step.inputs["variance"])
    if step.type == "add":
        for name in (*step.inputs["x"], *step.inputs["y"]):
            constant = program.constants.get(name)
            values = constant.load() if isinstance(constant, Weight) else constant
            if isinstance(values, np.ndarray) and values.min() <= MASKED:
                yield name


def _stored_as(step: Operation, program: Program) -> str:
    if step.type == "constexpr_lut_to_dense":
        _, shape = _dtype_and_shape(program.constants[step.inputs["lut"][0]])
        # [entries] until iOS17, then [blocks..., entries, vector].
        entries = shape[0] if len(shape) == 1 else shape[-2]
        return f"palette{entries.bit_length() - 1}"
    source = program.constants[step.inputs[_COMPRESSED_AS[step.type]][0]]
    return _dtype_and_shape(source)[0]


def _dtype_and_shape(constant: Constant) -> tuple[str, tuple[int, ...]]:
    if isinstance(constant, str):
        return "string", ()
    if isinstance(constant, Weight):
        return constant.element_type.name, constant.shape
    return str(constant.dtype), constant.shape


def _size(shape: Sequence[int | str]) -> int:
    return math.prod(length for length in shape if isinstance(length, int))
