"""The second pass of locating: the tensors around a few suspects, whole, and the suspects alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np

from triptych.bundle.bundle import Artifact
from triptych.models.feeds import Case
from triptych.parity.compare import compare, passes
from triptych.parity.locate import Finding
from triptych.parity.sites import Site
from triptych.parity.weights import ReadWeight, WeightDifference, differing_weights
from triptych.runtimes._taps.base import Tap, Tapper
from triptych.runtimes._taps.graph import Operator
from triptych.runtimes._taps.layouts import in_reference_layout
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.pytorch import ReferenceModule
from triptych.runtimes._taps.trace import Trace
from triptych.types import Array, ComponentName, TensorMap


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Both sides of a search, opened.

    Attributes:
        artifact: the candidate's component.
        original: the reference's.
        tapper: the candidate.
        module: the reference.
        names: the reference's parameters.
        case: what both are fed.
    """

    artifact: Artifact
    original: Artifact
    tapper: Tapper
    module: ReferenceModule
    names: ParameterNames
    case: Case

    @property
    def component(self) -> ComponentName:
        """Which network it is."""
        return self.artifact.spec.name

    @property
    def output_names(self) -> dict[str, str]:
        """By the candidate's name of an output, the reference's."""
        pairs = zip(self.artifact.bindings.outputs, self.original.bindings.outputs, strict=True)
        return {candidate.artifact_name: original.artifact_name for candidate, original in pairs}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPass:
    """What the first pass found out.

    Attributes:
        trace: the reference's run.
        feed: the candidate's, in its graph's names.
        tensors: by the candidate's value, the number of the tensor that it should be.
        limit: what one operator may err.
        taps_per_run: how many values are looked at in one run.
    """

    trace: Trace
    feed: TensorMap
    tensors: Mapping[str, int]
    limit: float
    taps_per_run: int


def examine(sides: Sides, first: FirstPass, suspects: Sequence[Site]) -> Iterator[Finding]:
    """The suspects that err on the reference's own inputs, in their order."""
    values = {
        value: None
        for site in suspects
        for value in (site.value, *site.region.inputs, *site.region.shape_inputs)
        if value in first.tensors
    }
    if not values:
        return
    actual = _fetch(sides, first, list(values))
    wanted = {first.tensors[value] for value in values}
    kept: dict[int, Array] = {}

    def keep(number: int, array: Array) -> None:
        if number in wanted:
            kept[number] = array.copy()

    sides.module.run(sides.case.feed, keep)
    expected = {value: kept[first.tensors[value]] for value in values}
    for site in suspects:
        finding = _finding(sides, first, site, actual, expected)
        if not passes(finding.local, rel_l2_limit=first.limit):
            yield finding


def _fetch(sides: Sides, first: FirstPass, values: Sequence[str]) -> dict[str, Array]:
    """Values of the candidate's run, whole, in as many runs as there are batches."""
    found: dict[str, Array] = {}
    for batch in batches(values, first.taps_per_run):
        taps = [Tap(value=each, shape=first.trace.shapes[first.tensors[each]]) for each in batch]
        found |= sides.tapper.fetch(first.feed, taps)
    return found


def batches(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """Values in groups of a size; the last may be smaller."""
    waiting = iter(values)
    while batch := list(islice(waiting, size)):
        yield batch


def _finding(
    sides: Sides,
    first: FirstPass,
    site: Site,
    actual: Mapping[str, Array],
    expected: Mapping[str, Array],
) -> Finding:
    """What comes out of a suspect, in the candidate's run and on the reference's inputs."""
    region, component, shape = site.region, sides.component, first.trace.shapes[site.tensor]
    given = {
        value: _as_dtype(expected[value], actual[value].dtype)
        for value in (*region.inputs, *region.shape_inputs)
        if value in expected
    }
    readers = {value: reader for reader, value in sides.tapper.graph.constant_inputs(region)}
    found = sides.tapper.compute(region, given, [site.value, *readers], first.feed)
    laid_out = in_reference_layout(found.pop(site.value), shape)
    alone = actual[site.value] if laid_out is None else laid_out
    arrived = [
        compare(actual[value], expected[value], component=component, tensor=value)
        for value in region.inputs
        if value in expected
    ]
    output, local = (
        compare(array, expected[site.value], component=component, tensor=site.value)
        for array in (actual[site.value], alone)
    )
    weights = _differing_weights(sides, first, site, readers, found)
    operator = next(
        (each for each in region.operators if weights and each.name == weights[0].operator),
        region.operators[-1],
    )
    return Finding(
        site=site,
        operator=operator.name,
        operator_type=operator.type,
        arrived=max(arrived, key=lambda each: each.rel_l2, default=None),
        output=output,
        local=local,
        propagated=compare(
            actual[site.value], alone, component=component, tensor=site.value
        ).rel_l2,
        weights=weights,
    )


def _differing_weights(
    sides: Sides,
    first: FirstPass,
    site: Site,
    readers: Mapping[str, Operator],
    found: TensorMap,
) -> tuple[WeightDifference, ...]:
    """The weights that a region reads and that are not the checkpoint's."""
    weights = [
        ReadWeight(
            operator=readers[value].name,
            parameter=readers[value].parameters.get(value, ""),
            known_as=_known_as(sides, value),
            values=array,
        )
        for value, array in found.items()
    ]
    parameters = [
        name for name in sides.module.parameters if name.rpartition(".")[0] in site.modules
    ]
    return differing_weights(
        weights,
        parameters,
        load=sides.module.parameter,
        component=sides.component,
        limit=first.limit,
    )


def _known_as(sides: Sides, value: str) -> str | None:
    """The parameter that a constant is made of, by name."""
    roots = sides.tapper.graph.constant_roots(value)
    return next((found for root in roots if (found := sides.names.find(root))), None)


def _as_dtype(array: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore"):  # beyond half precision: infinity, as in the candidate's run
        return array.astype(dtype)
