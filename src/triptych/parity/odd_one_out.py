"""Who is wrong, where several were compared: each with each, the reference among them.

Two numbers that differ do not say which is right. Of three, one that is far from two which are near
each other is the odd one, and it may be the reference: TF32 is enough.
"""

import statistics
from collections.abc import Mapping, Sequence

from triptych.parity.metrics import rel_l2
from triptych.parity.report import OddOneOut
from triptych.types import Array

ODD_FACTOR = 4.0
"""Times as far from its nearest neighbour as the others are from theirs; as `WARN_RATIO`."""


def find_odd_one_out(results: Mapping[str, Array]) -> OddOneOut | None:
    """Compare one result of every participant; None where there are fewer than three.

    Args:
        results: by participant, all of one shape.
    """
    if len(results) < 3:
        return None
    names = tuple(results)
    distances = tuple(
        tuple(_distance(results[one], results[other]) for other in names) for one in names
    )
    nearest = [_nearest(row, index) for index, row in enumerate(distances)]
    farthest = max(range(len(names)), key=nearest.__getitem__)
    others = [nearest[index] for index in range(len(names)) if index != farthest]
    usual = statistics.median(others)
    factor = nearest[farthest] / usual if usual > 0 else float("inf") if nearest[farthest] else 1.0
    is_odd = factor >= ODD_FACTOR and nearest[farthest] > 0
    return OddOneOut(
        participants=names,
        distances=distances,
        odd=names[farthest] if is_odd else "",
        factor=float(factor),
    )


def _distance(one: Array, other: Array) -> float:
    """Relative L2, the same both ways: the unit is that of whoever is farther."""
    return max(rel_l2(one, other), rel_l2(other, one))


def _nearest(row: Sequence[float], index: int) -> float:
    return min(distance for other, distance in enumerate(row) if other != index)
