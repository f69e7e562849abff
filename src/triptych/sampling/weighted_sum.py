"""Sums of large arrays."""

import numpy as np

from triptych.types import Array


def weighted_sum(first: tuple[float, Array], *others: tuple[float, Array]) -> Array:
    """Arrays times their weights, added up in float64; large arrays are allocated only twice."""
    weight, array = first
    total: Array = np.multiply(array, weight, dtype=np.float64)
    product = np.empty_like(total)
    for weight, array in others:
        total += np.multiply(array, weight, out=product)
    return total
