"""Where a candidate is compared with the reference inside a network, and what each place is called.

A site is one value of the candidate's graph that is known to be one tensor of the reference. It is
computed by a region of operators from the sites before it, so that an error there is either in the
region or came in through them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.graph import Graph, Region
from triptych.runtimes._taps.trace import Trace


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place of comparison.

    Attributes:
        value: in the candidate's graph.
        tensor: its number in the reference's trace.
        region: what computes it from other sites.
        module: the module that makes it, or in which it is made, as diffusers or transformers name
            it; empty for the component itself.
        before: the module that it is made for, where operators of `module` itself make it between
            two others; empty for a module's own result.
        block: the block around it; empty for the component itself.
        modules: the modules whose operators are in the region, with the reference's full names.
    """

    value: str
    tensor: int
    region: Region
    module: str
    before: str
    block: str
    modules: tuple[str, ...]


def make_sites(
    graph: Graph, trace: Trace, bounds: Iterable[Bound], *, prefix: str
) -> tuple[Site, ...]:
    """The sites in the order in which the reference made their tensors.

    Args:
        graph: the candidate's.
        trace: the reference's.
        bounds: which value is which tensor; none twice, and none that is fed.
        prefix: what a component's modules have before their names.
    """
    by_value = {bound.value: bound for bound in bounds}
    makers = {bound.call for bound in by_value.values() if bound.role == "output"}
    positions = graph.producers
    ordered = sorted(by_value.values(), key=lambda each: (each.tensor, positions[each.value]))
    return tuple(_site(graph, trace, bound, by_value, makers, prefix) for bound in ordered)


def _site(
    graph: Graph,
    trace: Trace,
    bound: Bound,
    by_value: dict[str, Bound],
    makers: set[int],
    prefix: str,
) -> Site:
    region = graph.region(bound.value, by_value.keys() - {bound.value})
    before = max(
        (by_value[value].tensor for value in region.inputs if value in by_value), default=-1
    )
    seen = {each.tensor for each in by_value.values() if each.value != bound.value}
    inside = [
        at
        for at in trace.leaves_between(before, bound.tensor)
        if not seen.intersection(trace.calls[at].outputs)
    ]
    call, wanted_by = _owner(trace, bound, makers, inside)
    blocks = (trace.calls[at] for at in trace.ancestors(call))
    block = next((each.module for each in blocks if _is_block(each.kind)), "")
    return Site(
        value=bound.value,
        tensor=bound.tensor,
        region=region,
        module=_short(trace.calls[call].module, prefix),
        before="" if wanted_by is None else _short(trace.calls[wanted_by].module, prefix),
        block=_short(block, prefix),
        modules=tuple(dict.fromkeys(trace.calls[at].module for at in [*inside, call])),
    )


def _owner(
    trace: Trace, bound: Bound, makers: set[int], inside: list[int]
) -> tuple[int, int | None]:
    """The call whose operators made a value, and the call they made it for, if they are between.

    What a call was given is the result of the module that made it, unless that result is a site of
    its own: then something was put in between.
    """
    if bound.role == "output":
        return bound.call, None
    maker = trace.maker(bound.tensor)
    if maker is not None and maker not in makers:
        return maker, None
    if maker is None and len(inside) == 1:
        return inside[0], None
    receiver = trace.receiver(bound.tensor, bound.call)
    owner = trace.calls[receiver].parent
    return (0, None) if owner is None else (owner, bound.call)


def _is_block(kind: str) -> bool:
    return "Block" in kind or kind.endswith("Layer")


def _short(module: str, prefix: str) -> str:
    return "" if f"{module}." == prefix else module.removeprefix(prefix)
