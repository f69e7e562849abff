"""A few numbers that stand for a whole tensor, small enough to keep for every layer.

A tensor x of N elements is laid out as a matrix M of about √N rows and columns, and multiplied from
both sides by fixed matrices of random signs: Y = L·M·R with 32 rows and 32 columns. Y is linear in
x, so that sketches of two tensors can be subtracted.

What it guarantees: E[mean(Y²)] = ‖x‖² for any x, so that the difference of two sketches estimates
the distance of the tensors without bias. The relative standard deviation of mean(Y²) is at most
√((1 + 2/32)² - 1) = 36 % (a difference of rank one), that of its root about half of that; for one
differing element there is none at all. What is far away cannot look near: a difference is seen as
less than half its size with a probability of about 1e-4 at worst. Y is computed in float32, which
adds some 1e-7 of relative noise.

Source:
    Johnson & Lindenstrauss 1984; with random signs Achlioptas 2003, "Database-friendly random
    projections". Two sides, so that the matrices stay small: Pham & Pagh 2013, "Fast and scalable
    polynomial kernels via explicit feature maps".
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np

from triptych.types import Array

WIDTH = 32
"""Rows and columns of Y."""

_SEED = 20231
_NUM_STATISTICS = 3


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """What is kept of one tensor.

    Attributes:
        shape: its axes.
        num_non_finite: elements that are NaN or infinite.
        max_abs: largest absolute value; NaN or infinite where an element is.
        rms: root mean square, in its own unit; not finite where an element is not.
        projected: Y, flattened.
    """

    shape: tuple[int, ...]
    num_non_finite: int
    max_abs: float
    rms: float
    projected: Array


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The two matrices of signs for tensors of one size.

    Attributes:
        left: [32, rows] of -1 and 1, float32.
        right: [columns, 32] of -1 and 1, float32.
    """

    left: Array
    right: Array

    @property
    def padded_size(self) -> int:
        """Rows times columns: how many elements the matrix in the middle has."""
        return int(self.left.shape[1] * self.right.shape[0])


@lru_cache(maxsize=64)
def projection(size: int) -> Projection:
    """The matrices for tensors of so many elements; the same on every machine."""
    columns = max(1, math.isqrt(size))
    rows = -(-size // columns)
    random = np.random.Generator(np.random.PCG64([_SEED, rows, columns]))
    left, right = (
        (2 * random.integers(0, 2, shape) - 1).astype(np.float32)
        for shape in ((WIDTH, rows), (columns, WIDTH))
    )
    return Projection(left=left, right=right)


def sketch(tensor: Array) -> Sketch:
    """Measure a tensor of floats."""
    flat = np.ravel(tensor).astype(np.float32, copy=False)
    matrices = projection(flat.size)
    padded = np.zeros(matrices.padded_size, np.float32)
    padded[: flat.size] = flat
    with np.errstate(invalid="ignore", over="ignore"):
        projected = matrices.left @ padded.reshape(matrices.left.shape[1], -1) @ matrices.right
        rms = math.sqrt(float(np.mean(np.square(flat, dtype=np.float64))))
    return Sketch(
        shape=tensor.shape,
        num_non_finite=int(flat.size - np.isfinite(flat).sum()),
        max_abs=float(np.max(np.abs(flat))),
        rms=rms,
        projected=projected.ravel(),
    )


def sketch_from_vector(vector: Array) -> Sketch:
    """A sketch that a graph computed: non-finite elements, max_abs, rms, Y, then the axes."""
    end = _NUM_STATISTICS + WIDTH * WIDTH
    num_non_finite, max_abs, rms = (float(number) for number in vector[:_NUM_STATISTICS])
    return Sketch(
        shape=tuple(int(length) for length in vector[end:]),
        num_non_finite=int(num_non_finite),
        max_abs=max_abs,
        rms=rms,
        projected=vector[_NUM_STATISTICS:end],
    )


def estimated_rel_l2(actual: Sketch, expected: Sketch) -> float:
    """Relative L2 distance of two tensors, from their sketches; see the module for how exact.

    0 when both are all zeros, +inf when only `expected` is, NaN when anything is not finite or the
    shapes differ: a NaN never passes a limit.
    """
    if actual.shape != expected.shape or actual.num_non_finite or expected.num_non_finite:
        return math.nan
    difference = actual.projected.astype(np.float64) - expected.projected
    distance = math.sqrt(float(np.mean(np.square(difference))))
    norm = expected.rms * math.sqrt(math.prod(expected.shape))
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm
