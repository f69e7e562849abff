"""A few numbers that stand for a whole tensor, small enough to keep for every layer.

A tensor x is laid out as a matrix M of about as many rows as columns, and multiplied from both
sides by fixed matrices of random signs: Y = L·M·R with 32 rows and 32 columns. Y is linear in x, so
that sketches of two tensors can be subtracted, and four operators compute it in any graph.

What it guarantees: E[mean(Y²)] = ‖x‖² for any x, so that the difference of two sketches estimates
the distance of the tensors. The standard deviation of mean(Y²) is at most √((1 + 2/32)² - 1) = 36 %
of it (for a difference of rank one; less for others, none for one differing element), so that a
distance is seen within a factor of two but for about one tensor in a thousand at worst. Y holds NaN
or infinity where x does. It is computed in float32, which adds some 1e-7 of relative noise.

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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """What is kept of one tensor.

    Attributes:
        shape: its axes.
        projected: Y, [32, 32].
    """

    shape: tuple[int, ...]
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
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix in the middle."""
        return self.left.shape[1], self.right.shape[0]

    @property
    def padded_size(self) -> int:
        """How many elements it has: as many as the tensor, or a few more."""
        return math.prod(self.matrix_shape)


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
    matrices = projection(tensor.size)
    padded = np.zeros(matrices.padded_size, np.float32)
    padded[: tensor.size] = np.ravel(tensor)
    with np.errstate(invalid="ignore", over="ignore"):
        projected = matrices.left @ padded.reshape(matrices.matrix_shape) @ matrices.right
    return Sketch(shape=tensor.shape, projected=projected)


def estimated_rel_l2(actual: Sketch, expected: Sketch) -> float:
    """Relative L2 distance of two tensors, from their sketches; see the module for how exact.

    0 when the sketches are equal, +inf when only `expected` is all zeros, NaN when anything is not
    finite or the shapes differ: a NaN never passes a limit.
    """
    if actual.shape != expected.shape:
        return math.nan
    with np.errstate(invalid="ignore"):
        difference = actual.projected.astype(np.float64) - expected.projected
    distance, norm = (float(np.linalg.norm(each)) for each in (difference, expected.projected))
    if not math.isfinite(distance):
        return math.nan
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm
