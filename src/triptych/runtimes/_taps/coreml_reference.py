"""Taps in Core ML programs, run by the reference interpreter, which shows every operator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import final

import numpy as np

from triptych.bundle.bundle import Artifact
from triptych.mil.joining import joined
from triptych.mil.program import Operation, Program
from triptych.runtimes._mil.interpreter import open_program, run
from triptych.runtimes._mil.values import Mode, Values
from triptych.runtimes._taps.base import Tap, Tapped
from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.by_weight import bind_by_weight
from triptych.runtimes._taps.graph import Graph, Region
from triptych.runtimes._taps.graph import Operator as GraphOperator
from triptych.runtimes._taps.layouts import in_graph_layout, in_reference_layout, may_be_same
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import Sketch, sketch
from triptych.runtimes._taps.trace import Trace
from triptych.runtimes.coreml_reference import CoreMlReference
from triptych.types import Array, TensorMap


@final
class CoreMlReferenceTapper:
    """One program, or several that follow one another, as one."""

    def __init__(self, runtime: CoreMlReference, artifact: Artifact) -> None:
        """Read the packages.

        Raises:
            BundleError: a package is damaged, or has operators that are not known.
        """
        self._program: Program = joined([open_program(path) for path in artifact.paths])
        self._mode: Mode = "declared" if runtime.settings.precision is None else "fp32"
        self._specs = {spec.name: spec for spec in self._program.inputs}
        self._specs |= {
            spec.name: spec for step in self._program.operations for spec in step.outputs
        }

    @property
    def shows_all(self) -> bool:
        """Every operator is run one by one."""
        return True

    @cached_property
    def graph(self) -> Graph:
        """The program; unpacking weights is an operator too."""
        return Graph(
            tuple(spec.name for spec in self._program.inputs),
            tuple(spec.name for spec in self._program.outputs),
            tuple(map(_operator, self._program.operations)),
        )

    def bind(self, trace: Trace, names: ParameterNames) -> tuple[Bound, ...]:
        """Pair by the names of weights, where the shapes can be those of the reference."""
        return tuple(
            bound
            for bound in bind_by_weight(self.graph, trace, names)
            if may_be_same(self._shape(bound.value), trace.shapes[bound.tensor])
        )

    def measure(self, feed: TensorMap, taps: Sequence[Tap]) -> Tapped:
        """Run the program and measure what it computes, value by value."""
        shapes = {tap.value: tap.shape for tap in taps}
        sketches: dict[str, Sketch] = {}

        def look(_: Operation, found: Mapping[str, Array]) -> None:
            for value in found.keys() & shapes.keys():
                seen = in_reference_layout(found[value], shapes[value])
                sketches[value] = sketch(found[value] if seen is None else seen)

        outputs = run(self._program, feed, mode=self._mode, observe=look, check_finite=False)
        return Tapped(sketches=sketches, outputs=outputs)

    def fetch(self, feed: TensorMap, taps: Sequence[Tap]) -> dict[str, Array]:
        """Run the program and keep these values."""
        shapes = {tap.value: tap.shape for tap in taps}
        kept: dict[str, Array] = {}

        def look(_: Operation, found: Mapping[str, Array]) -> None:
            for value in found.keys() & shapes.keys():
                seen = in_reference_layout(found[value], shapes[value])
                kept[value] = np.array(found[value] if seen is None else seen)

        run(self._program, feed, mode=self._mode, observe=look, check_finite=False)
        return kept

    def compute(
        self, region: Region, given: Mapping[str, Array], outputs: Sequence[str], feed: TensorMap
    ) -> dict[str, Array]:
        """Interpret the region's operations alone."""
        steps = {operator.outputs for operator in (*region.constant_operators, *region.operators)}
        sources = {*region.inputs, *region.shape_inputs}
        fed = {spec.name: feed[spec.name] for spec in self._program.inputs if spec.name in sources}
        fed |= {value: in_graph_layout(array, self._shape(value)) for value, array in given.items()}
        part = replace(
            self._program,
            inputs=tuple(self._specs[value] for value in fed),
            outputs=tuple(self._specs[value] for value in outputs if value in self._specs),
            operations=tuple(
                step
                for step in self._program.operations
                if tuple(spec.name for spec in step.outputs) in steps
            ),
        )
        found = run(part, fed, mode=self._mode, check_finite=False)
        constants = self._program.constants
        for value in outputs:
            if value in constants and not isinstance(constants[value], str):
                found[value] = Values(part, mode=self._mode).constant(value)
        return found

    def _shape(self, value: str) -> tuple[int, ...]:
        """A value's shape, as the program declares it; it has no open axes but its inputs'."""
        return tuple(axis if isinstance(axis, int) else -1 for axis in self._specs[value].shape)


def _operator(step: Operation) -> GraphOperator:
    return GraphOperator(
        name=step.name,
        type=step.type,
        inputs=tuple(name for names in step.inputs.values() for name in names),
        outputs=tuple(spec.name for spec in step.outputs),
        names=(step.name,),
        parameters={name: parameter for parameter, names in step.inputs.items() for name in names},
    )
