"""What tapping an engine promises. A Protocol, so that an engine needs to inherit nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.graph import Graph, Region
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import Sketch
from triptych.runtimes._taps.trace import Trace
from triptych.types import Array, TensorMap


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One value to measure.

    Attributes:
        value: in the graph.
        shape: what the reference has there. The graph may lay it out otherwise, where a layout is
            known to mean the same; what it measures is in the reference's.
    """

    value: str
    shape: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tapped:
    """One run with taps.

    Attributes:
        sketches: what was measured, by value.
        outputs: the component's own outputs in this run, in the graph's names.
    """

    sketches: Mapping[str, Sketch]
    outputs: TensorMap


@runtime_checkable
class Tapper(Protocol):
    """One component of a bundle, opened so that any value of its graph can be looked at.

    Feeds are in the graph's names, layouts and dtypes. Values that are not finite are results like
    any other.
    """

    @property
    def graph(self) -> Graph:
        """The graph as its file says it, before an engine rewrites it."""

    @property
    def shows_all(self) -> bool:
        """Whether looking costs nothing, so that one run shows every value."""

    def bind(self, trace: Trace, names: ParameterNames) -> tuple[Bound, ...]:
        """Pair values of the graph with the reference's tensors, by what their names tell."""

    def measure(self, feed: TensorMap, taps: Sequence[Tap]) -> Tapped:
        """Run the graph once, measuring values on the way; none is kept whole."""

    def fetch(self, feed: TensorMap, taps: Sequence[Tap]) -> dict[str, Array]:
        """Run the graph once and give values whole: the reference's layout, the graph's dtype."""

    def compute(
        self, region: Region, given: Mapping[str, Array], outputs: Sequence[str], feed: TensorMap
    ) -> dict[str, Array]:
        """Run a part of the graph alone.

        Args:
            region: the part.
            given: its inputs, in the reference's layout and the graph's dtypes; the graph's own
                inputs are taken from `feed`.
            outputs: values that it computes, or constants that it reads.
            feed: the whole graph's.

        Returns:
            The values as the graph has them.
        """
