"""An engine's graph as values: operators, what feeds them, and what lies between two values."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

_READS_SHAPE_ONLY = frozenset({"Shape", "ShapeOf", "Size", "shape"})
"""Operators whose result is the same for all numbers in a tensor."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One step of a graph.

    Attributes:
        name: as the engine calls it.
        type: which operator.
        inputs: the values it reads; those left out are not there.
        outputs: the values it computes.
        names: everything it is called by, the telling ones first; empty where no name was given
            on purpose.
        parameters: for values among `inputs`, what the operator calls them, such as "weight".
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The part of a graph that computes one value from others.

    Attributes:
        output: the value.
        inputs: the values whose numbers it is computed from, in the order they are met.
        shape_inputs: values of which only the shape is read.
        operators: the steps that handle numbers, in order.
        constant_operators: the steps that handle only constants and shapes, in order.
        constants: constants that are read.
    """

    output: str
    inputs: tuple[str, ...]
    shape_inputs: tuple[str, ...]
    operators: tuple[Operator, ...]
    constant_operators: tuple[Operator, ...]
    constants: tuple[str, ...]


@final
@dataclass(frozen=True)
class Graph:
    """A graph; operators in an order in which they can run.

    Attributes:
        inputs: the values that are fed.
        outputs: the values that are given.
        operators: the steps.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[Operator, ...]

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """By value, the position of the operator that computes it."""
        return {
            value: position
            for position, operator in enumerate(self.operators)
            for value in operator.outputs
        }

    @cached_property
    def readers(self) -> Mapping[str, tuple[int, ...]]:
        """By value, the positions of the operators that read it."""
        found: dict[str, list[int]] = {}
        for position, operator in enumerate(self.operators):
            for value in dict.fromkeys(operator.inputs):
                found.setdefault(value, []).append(position)
        return {value: tuple(positions) for value, positions in found.items()}

    @cached_property
    def data(self) -> frozenset[str]:
        """The values whose numbers depend on the numbers that are fed."""
        found = set(self.inputs)
        for operator in self.operators:
            if handles_numbers(operator, found):
                found.update(operator.outputs)
        return frozenset(found)

    @cached_property
    def num_data_operators(self) -> int:
        """How many operators handle the numbers that are fed."""
        return sum(self._is_data(operator) for operator in self.operators)

    def region(self, output: str, known: Collection[str]) -> Region:
        """What computes a value from the nearest known ones.

        Args:
            output: the value; it may itself be known.
            known: values at which to stop, beside those that are fed.
        """
        stops = {*known, *self.inputs}
        positions: set[int] = set()
        frontier: dict[str, bool] = {}
        constants: dict[str, None] = {}
        waiting = [self.producers[output]] if output in self.producers else []
        while waiting:
            position = waiting.pop()
            if position in positions:
                continue
            positions.add(position)
            operator = self.operators[position]
            by_shape = operator.type in _READS_SHAPE_ONLY
            for value in operator.inputs:
                if value in stops:
                    frontier[value] = frontier.get(value, False) or not by_shape
                elif value in self.producers:
                    waiting.append(self.producers[value])
                else:
                    constants[value] = None
        steps = [self.operators[position] for position in sorted(positions)]
        return Region(
            output=output,
            inputs=tuple(value for value, is_data in frontier.items() if is_data),
            shape_inputs=tuple(value for value, is_data in frontier.items() if not is_data),
            operators=tuple(step for step in steps if self._is_data(step)),
            constant_operators=tuple(step for step in steps if not self._is_data(step)),
            constants=tuple(constants),
        )

    def constant_roots(self, value: str) -> tuple[str, ...]:
        """The constants that a value of nothing but constants and shapes is made of."""
        if value not in self.producers:
            return (value,)
        sources = self.operators[self.producers[value]].inputs
        found = [
            root
            for source in sources
            if source not in self.data
            for root in self.constant_roots(source)
        ]
        return tuple(dict.fromkeys(found)) or (value,)

    def constant_inputs(self, region: Region) -> Iterator[tuple[Operator, str]]:
        """The constant values that a region's operators read, each with its first reader."""
        seen = {*region.inputs, *region.shape_inputs}
        for operator in region.operators:
            for value in operator.inputs:
                if value not in self.data and value not in seen:
                    seen.add(value)
                    yield operator, value

    def _is_data(self, operator: Operator) -> bool:
        return any(value in self.data for value in operator.outputs)


def handles_numbers(operator: Operator, data: Collection[str]) -> bool:
    """Whether an operator's result depends on the numbers of these values, not their shapes."""
    return operator.type not in _READS_SHAPE_ONLY and any(
        value in data for value in operator.inputs
    )
