"""Which values of a graph are which tensors of the reference, by the names of modules.

Graphs that were traced from PyTorch name their operators after the modules that they came from:
"/unet/down_blocks.0/resnets.1/conv1/Conv" in ONNX, also after OpenVINO read it, and
"__module.down_blocks.0.resnets.1.conv1/aten::_convolution/Convolution" where OpenVINO traced it,
with "__module.model." where optimum-intel put a module around the network.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

from triptych.runtimes._taps.graph import Graph, Operator
from triptych.runtimes._taps.trace import Trace

_CALL_NUMBER = re.compile(r"_\d+$")
_WRAPPERS = re.compile(r"^/|^__module\.(model\.)?")
_NORMS = ("LayerNorm", "GroupNorm")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One value of a graph and the tensor that it should be.

    Attributes:
        value: in the graph.
        tensor: its number in the trace.
        call: the call that it was found by.
        role: whether it is that call's result, or what the call was given.
    """

    value: str
    tensor: int
    call: int
    role: Literal["output", "input"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """The operators of one call of one module, as far as names tell.

    Attributes:
        module: its name.
        taken: the one value of numbers that they read from outside; None where it is not one.
        given: the last value of numbers that is read outside.
    """

    module: str
    taken: str | None
    given: str | None


def bind_by_scope(graph: Graph, trace: Trace, prefix: str) -> tuple[Bound, ...]:
    """Pair the results, and the one argument, of every module that calls no other.

    A module that is called several times is told by what it was given; where that is not known,
    its calls are taken in order, if the graph shows all of them.

    Args:
        graph: the candidate's.
        trace: the reference's.
        prefix: what triptych's own traces have before a module's name, as "unet.".
    """
    calls: dict[str, list[int]] = defaultdict(list)
    for at in trace.leaves:
        calls[trace.calls[at].module].append(at)
    kinds = {module: trace.calls[at[0]].kind for module, at in calls.items()}
    scopes: dict[str, list[_Scope]] = defaultdict(list)
    for scope in _scopes(graph, kinds, prefix):
        scopes[scope.module].append(scope)
    bound: dict[str, Bound] = {}
    for module, found in scopes.items():
        if len(found) == len(calls[module]) == 1:
            _bind(bound, trace, found[0], calls[module][0])
    for module, found in scopes.items():
        if len(calls[module]) > 1:
            _bind_repeated(bound, trace, found, calls[module])
    return tuple(bound.values())


def _bind(bound: dict[str, Bound], trace: Trace, scope: _Scope, at: int) -> None:
    call = trace.calls[at]
    if scope.given is not None and len(call.outputs) == 1:
        bound[scope.given] = Bound(
            value=scope.given, tensor=call.outputs[0], call=at, role="output"
        )
    if scope.taken is not None and len(call.inputs) == 1 and scope.taken not in bound:
        bound[scope.taken] = Bound(value=scope.taken, tensor=call.inputs[0], call=at, role="input")


def _bind_repeated(
    bound: dict[str, Bound], trace: Trace, scopes: list[_Scope], calls: list[int]
) -> None:
    left_scopes, left_calls = list(scopes), list(calls)
    for scope in scopes:
        known = bound.get(scope.taken) if scope.taken is not None else None
        at = next(
            (at for at in left_calls if known and trace.calls[at].inputs == (known.tensor,)), None
        )
        if at is not None:
            _bind(bound, trace, scope, at)
            left_scopes.remove(scope)
            left_calls.remove(at)
    if len(left_scopes) == len(left_calls):
        for scope, at in zip(left_scopes, left_calls, strict=True):
            _bind(bound, trace, scope, at)


def _scopes(graph: Graph, kinds: Mapping[str, str], prefix: str) -> Iterator[_Scope]:
    """Every group of operators that was named after a call of one of these modules."""
    aliases = {module.removeprefix(prefix): module for module in kinds} | {
        name: name for name in kinds
    }
    groups: dict[str, list[int]] = defaultdict(list)
    modules: dict[str, str] = {}
    for position, operator in enumerate(graph.operators):
        found = _scope_of(operator, aliases)
        if found is not None:
            key, module = found
            groups[key].append(position)
            modules[key] = module
    for key, positions in groups.items():
        module = modules[key]
        inside = set(positions)
        if kinds[module] in _NORMS:
            _take_in_unnamed(graph, inside)
        yield _Scope(module=module, taken=_taken(graph, inside), given=_given(graph, inside))


def _scope_of(operator: Operator, aliases: Mapping[str, str]) -> tuple[str, str] | None:
    """The scope that an operator is named after, as written, and the module's name."""
    for name in operator.names:
        pieces = _WRAPPERS.sub("", name).split("/")[:-1]
        for length in range(len(pieces), 0, -1):
            path = ".".join(pieces[:length])
            for candidate in (path, _CALL_NUMBER.sub("", path)):
                if candidate in aliases:
                    return path, aliases[candidate]
    return None


def _take_in_unnamed(graph: Graph, inside: set[int]) -> None:
    """Add the operators without a name that nothing but these reads: an engine split a norm."""
    waiting = list(inside)
    while waiting:
        for value in graph.operators[waiting.pop()].inputs:
            position = graph.producers.get(value)
            if position is None or position in inside or value not in graph.data:
                continue
            if not graph.operators[position].names and inside.issuperset(graph.readers[value]):
                inside.add(position)
                waiting.append(position)


def _taken(graph: Graph, inside: set[int]) -> str | None:
    """The one value of numbers that operators read from outside, if its maker has a name."""
    found = {
        value
        for position in sorted(inside)
        for value in graph.operators[position].inputs
        if value in graph.data
        and graph.producers.get(value) not in inside
        and any(output in graph.data for output in graph.operators[position].outputs)
    }
    if len(found) != 1:
        return None
    (value,) = found
    position = graph.producers.get(value)
    return value if position is None or graph.operators[position].names else None


def _given(graph: Graph, inside: set[int]) -> str | None:
    """The last value of numbers that operators compute for others."""
    for position in sorted(inside, reverse=True):
        for value in graph.operators[position].outputs:
            is_read = any(at not in inside for at in graph.readers.get(value, ()))
            if value in graph.data and (is_read or value in graph.outputs):
                return value
    return None
