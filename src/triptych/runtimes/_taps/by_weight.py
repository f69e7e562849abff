"""Which values of a graph are which tensors of the reference, by the weights that are read.

ML programs name no modules, but their weights are named after parameters. Norms over groups are
written out as several operators, the last of which has weights without a name: they are told by
what lies around them.
"""

from collections import defaultdict

from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.graph import Graph, Operator
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.trace import Trace

_WEIGHTS = {"conv": "weight", "linear": "weight", "layer_norm": "gamma", "gather": "x"}
"""Operators that are a module each, and what they call its weight."""

_FED = {"conv": "x", "linear": "x", "layer_norm": "x"}
"""What they call the module's argument."""


def bind_by_weight(graph: Graph, trace: Trace, names: ParameterNames) -> tuple[Bound, ...]:
    """Pair the results and arguments of every module whose weight has a name, then of group norms.

    A weight that several operators read, as equal weights are kept once, tells nothing.
    """
    calls: dict[str, list[int]] = defaultdict(list)
    for at in trace.leaves:
        calls[trace.calls[at].module].append(at)
    operators: dict[str, list[Operator]] = defaultdict(list)
    for operator in graph.operators:
        module = _module(graph, operator, names)
        if module is not None:
            operators[module].append(operator)
    bound: dict[str, Bound] = {}
    for module, found in operators.items():
        if len(found) == len(calls[module]) == 1:
            (operator,), (at,) = found, calls[module]
            _bind(bound, trace, operator, at)
    _bind_group_norms(bound, graph, trace)
    return tuple(bound.values())


def _module(graph: Graph, operator: Operator, names: ParameterNames) -> str | None:
    """The module whose weight an operator reads."""
    wanted = _WEIGHTS.get(operator.type)
    for value, parameter in operator.parameters.items():
        if parameter == wanted and value not in graph.data:
            for root in graph.constant_roots(value):
                found = names.find(root)
                if found is not None and found.endswith(".weight"):
                    return found.removesuffix(".weight")
    return None


def _bind(bound: dict[str, Bound], trace: Trace, operator: Operator, at: int) -> None:
    call = trace.calls[at]
    (given,) = operator.outputs
    bound[given] = Bound(value=given, tensor=call.outputs[0], call=at, role="output")
    for value, parameter in operator.parameters.items():
        if parameter == _FED.get(operator.type) and value not in bound and call.inputs:
            bound[value] = Bound(value=value, tensor=call.inputs[0], call=at, role="input")


def _bind_group_norms(bound: dict[str, Bound], graph: Graph, trace: Trace) -> None:
    """Pair a group norm where it is the only one on either side between what is paired already."""
    paired = {each.tensor for each in bound.values()}
    for known in tuple(bound.values()):
        region = graph.region(known.value, bound)
        norms = [operator for operator in region.operators if operator.type == "batch_norm"]
        before = max((bound[value].tensor for value in region.inputs if value in bound), default=-1)
        calls = [
            at
            for at in trace.leaves_between(before, known.tensor)
            if trace.calls[at].kind == "GroupNorm" and trace.calls[at].outputs[0] not in paired
        ]
        if len(norms) == len(calls) == 1:
            (value,), (tensor,) = norms[0].outputs, trace.calls[calls[0]].outputs
            bound.setdefault(value, Bound(value=value, tensor=tensor, call=calls[0], role="output"))
