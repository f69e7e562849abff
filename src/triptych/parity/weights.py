"""The weights that operators read against the checkpoint's: the best explanation of an error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.parity.compare import Comparison, compare, passes
from triptych.types import Array, ComponentName

_SHORT_NAMES: Mapping[str, tuple[str, ...]] = {
    "weight": ("weight", "gamma"),
    "bias": ("bias", "beta"),
}
"""What operators call the parameters of a module."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadWeight:
    """One constant that an operator multiplies or adds, as it is after unpacking.

    Attributes:
        operator: the operator's name.
        parameter: what the operator calls it; empty where operators have no such words.
        known_as: the checkpoint's parameter that its name stands for; None where it tells none.
        values: its elements.
    """

    operator: str
    parameter: str
    known_as: str | None
    values: Array


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDifference:
    """A weight that is not the checkpoint's.

    Attributes:
        parameter: its name in the checkpoint.
        operator: what reads it.
        comparison: how far it is from the checkpoint's, in the checkpoint's layout.
    """

    parameter: str
    operator: str
    comparison: Comparison


def differing_weights(
    weights: Iterable[ReadWeight],
    parameters: Sequence[str],
    *,
    load: Callable[[str], Array],
    component: ComponentName,
    limit: float,
) -> tuple[WeightDifference, ...]:
    """Compare what operators read with the checkpoint; the furthest first.

    A constant is a parameter by its name. One without a telling name is the parameter nearest to
    it, among those of its shape that are not taken by name.

    Args:
        weights: what the operators read.
        parameters: those of the modules that the operators belong to.
        load: gives a parameter of the checkpoint.
        component: for the record.
        limit: relative L2 that still passes.
    """
    read = [weight for weight in weights if weight.values.dtype.kind == "f" and weight.values.size]
    named = {weight.known_as for weight in read}
    found = []
    for weight in read:
        candidates = (
            [name for name in parameters if name not in named and _may_be(weight, name)]
            if weight.known_as is None
            else [weight.known_as]
        )
        compared = [
            WeightDifference(parameter=name, operator=weight.operator, comparison=comparison)
            for name in candidates
            for comparison in _compared(weight.values, load(name), component, name)
        ]
        if compared:
            found.append(min(compared, key=_distance))
    wrong = [each for each in found if not passes(each.comparison, rel_l2_limit=limit)]
    return tuple(sorted(wrong, key=_distance, reverse=True))


def _may_be(weight: ReadWeight, name: str) -> bool:
    words = _SHORT_NAMES.get(name.rpartition(".")[2], ())
    return not weight.parameter or weight.parameter in words


def _compared(
    values: Array, expected: Array, component: ComponentName, name: str
) -> list[Comparison]:
    """The comparisons of every layout in which the values may be the parameter; none if no one."""
    squeezed = np.squeeze(values)
    layouts = [squeezed, squeezed.T] if squeezed.ndim == 2 else [squeezed]
    return [
        compare(layout.reshape(expected.shape), expected, component=component, tensor=name)
        for layout in layouts
        if layout.shape == np.squeeze(expected).shape
    ]


def _distance(difference: WeightDifference) -> float:
    """Relative L2, with what is not finite as the furthest."""
    distance = difference.comparison.rel_l2
    return np.inf if np.isnan(distance) else distance
