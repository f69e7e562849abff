"""Which operator of a network is wrong: whose inputs agree with the reference and output does not.

Errors are relative L2. Along a healthy network they grow slowly, so an operator is suspected where
the error is too large and a multiple of what came in, and is a source where it errs as much on the
reference's own inputs. What remains of its error was propagated.

Source:
    coremltools' "fails while its direct inputs do not", msProbe's "input still good, output bad",
    onnx-diagnostic's second run on the reference's inputs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import final

import numpy as np

from triptych.parity.compare import Comparison, comparison_record
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.metrics import rel_l2
from triptych.parity.sites import Site
from triptych.parity.weights import WeightDifference
from triptych.runtimes.base import Execution
from triptych.types import Array, ComponentName, Precision, Verdict

GROWTH = 2.0
"""How much an operator must multiply the error to be suspected. Sources that add less than what
came in are not found."""

_ROUNDING: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
_WITHOUT_DEPTH = 0.25
_ESTIMATE = 0.5


def operator_limit(precision: Precision) -> float:
    """Relative L2 of one operator on exact inputs that still passes.

    The limit of a component leaves a factor of four to ten for depth, which one operator does not
    have. Weights that are stored in few bits err all at once: there it is the component's.
    """
    share = _WITHOUT_DEPTH if precision in _ROUNDING else 1.0
    return COMPONENT_REL_L2[precision] * share


def suspects(
    sites: Iterable[Site], errors: Mapping[str, float], *, limit: float
) -> tuple[Site, ...]:
    """The sites at which an error may begin, in their order.

    Errors are estimates, so half of the limit is enough. What was NaN or infinite on the way in is
    nobody's fault here; what became so is.

    Args:
        sites: all of them.
        errors: of each value that was compared, NaN where it is not finite. Values that are not
            among them were fed.
        limit: what one operator may err.
    """
    found = []
    for site in sites:
        arrived = [errors[value] for value in site.region.inputs if value in errors]
        error = errors[site.value]
        if error <= limit * _ESTIMATE or not all(map(math.isfinite, arrived)):
            continue
        # asked as "is it little more", so that a NaN is not
        if not error <= GROWTH * max(arrived, default=0.0):
            found.append(site)
    return tuple(found)


def most_suspicious(
    sites: Iterable[Site], errors: Mapping[str, float], *, count: int
) -> tuple[Site, ...]:
    """The sites that multiply the error most, at most so many, in their order."""

    def growth(site: Site) -> float:
        arrived = max((errors.get(value, 0.0) for value in site.region.inputs), default=0.0)
        error = errors[site.value]
        return math.inf if math.isnan(error) or arrived == 0 else error / arrived

    ordered = tuple(sites)
    chosen = {site.value for site in sorted(ordered, key=growth, reverse=True)[:count]}
    return tuple(site for site in ordered if site.value in chosen)


def changed_by(tapped: Array, plain: Array) -> float:
    """How far an output with taps is from the one without, as relative L2 of what is finite.

    0 where they are equal, NaN in the same places included; NaN where another element is finite.
    """
    if np.array_equal(tapped, plain, equal_nan=True):
        return 0.0
    finite = np.isfinite(plain)
    if not np.array_equal(np.isfinite(tapped), finite) or not finite.any():
        return math.nan
    return rel_l2(tapped[finite], plain[finite])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place at which an error begins.

    Attributes:
        site: where.
        operator: the operator to look at: the one that reads a wrong weight, else the last.
        operator_type: what it is.
        arrived: the worst of its inputs in the candidate's run; None where all of them were fed.
        output: what came out in the candidate's run.
        local: what comes out on the reference's inputs: its own error.
        propagated: relative L2 between what came out and what comes out on the reference's inputs.
        weights: weights of the region that are not the checkpoint's, the furthest first.
    """

    site: Site
    operator: str
    operator_type: str
    arrived: Comparison | None
    output: Comparison
    local: Comparison
    propagated: float
    weights: tuple[WeightDifference, ...]

    @property
    def reason(self) -> str:
        """What is wrong, in words."""
        if self.weights:
            return _weight_text(self.weights[0])
        if not self.local.finite_actual:
            return "makes NaN or infinity of finite numbers"
        kinds = list(dict.fromkeys(operator.type for operator in self.site.region.operators))
        return f"one of its operators differs: {', '.join(kinds)}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LocateReport:
    """A whole search.

    Attributes:
        component: the network.
        case: what was fed.
        execution: what the candidate ran on.
        precision: the class it is judged in.
        limit: what the component's outputs may err.
        operator_limit: what one operator may err.
        num_sites: places that were compared.
        num_operators: operators that handle numbers, in all.
        outputs: the component's outputs without taps.
        tapping: the largest relative L2 by which taps changed the outputs.
        findings: the first source, then the others by their own error, the worst first.
        num_unexamined: further suspects, which were not run alone.
    """

    component: ComponentName
    case: str
    execution: Execution
    precision: Precision
    limit: float
    operator_limit: float
    num_sites: int
    num_operators: int
    outputs: tuple[Comparison, ...]
    tapping: float
    findings: tuple[Finding, ...]
    num_unexamined: int

    @property
    def output_error(self) -> float:
        """The worst output's relative L2; NaN where one is not finite."""
        errors = [output.rel_l2 for output in self.outputs]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong beside the findings, in words."""
        found = []
        if not self.tapping <= self.operator_limit:
            found.append(
                f"tapping changed the result by {self.tapping:.1e}, want at most "
                f"{self.operator_limit:.1e}: what the taps saw may not be what runs without them"
            )
        if not self.output_error <= self.limit and not self.findings:
            found.append(
                f"the output differs by {self.output_error:.1e}, want at most {self.limit:.1e}, "
                "but no operator alone explains it: the error grows step by step"
            )
        return tuple(found)

    @property
    def verdict(self) -> Verdict:
        """Failed where an error begins, where the output is wrong, or where tapping changed it."""
        return "failed" if self.findings or self.problems else "passed"

    def to_json(self) -> dict[str, object]:
        """The report as plain values for one JSON document; NaN and infinity are strings."""
        return {
            "verdict": self.verdict,
            "component": self.component,
            "case": self.case,
            "execution": asdict(self.execution),
            "precision": self.precision,
            "limit": self.limit,
            "operator_limit": self.operator_limit,
            "num_sites": self.num_sites,
            "num_operators": self.num_operators,
            "outputs": [comparison_record(output) for output in self.outputs],
            "tapping": _number(self.tapping),
            "problems": list(self.problems),
            "findings": [_finding_record(finding) for finding in self.findings],
            "num_unexamined": self.num_unexamined,
        }


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The first in the order of execution, then the others by their own error, the worst first."""
    ordered = tuple(findings)
    return *ordered[:1], *sorted(ordered[1:], key=_own_error, reverse=True)


def _own_error(finding: Finding) -> float:
    error = finding.local.rel_l2
    return math.inf if math.isnan(error) else error


def _weight_text(difference: WeightDifference) -> str:
    found = difference.comparison
    where = f"at {list(found.max_abs_index)}"
    if not found.finite_actual:
        return f"{difference.parameter} holds NaN or infinity {where}"
    return (
        f"{difference.parameter} differs from the checkpoint: relative L2 {found.rel_l2:.1e}, "
        f"{found.max_abs:.2g} {where}"
    )


def _finding_record(finding: Finding) -> dict[str, object]:
    site = finding.site
    return {
        "module": site.module,
        "before": site.before,
        "block": site.block,
        "value": site.value,
        "operator": finding.operator,
        "operator_type": finding.operator_type,
        "reason": finding.reason,
        "input": None if finding.arrived is None else comparison_record(finding.arrived),
        "output": comparison_record(finding.output),
        "local": comparison_record(finding.local),
        "propagated": _number(finding.propagated),
        "operators": [
            {"name": operator.name, "type": operator.type} for operator in site.region.operators
        ],
        "weights": [
            {
                "parameter": weight.parameter,
                "operator": weight.operator,
                **comparison_record(weight.comparison),
            }
            for weight in finding.weights
        ],
    }


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
