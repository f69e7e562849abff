"""What differs between two checks or two machines, most likely to change numbers first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, final

from triptych.parity.facts import FACT_KINDS, FactKind, Facts
from triptych.parity.reasons import why_a_fact_matters
from triptych.parity.report import ParityReport, Row

DifferenceKind: TypeAlias = Literal[FactKind, "result"]
"""A kind of fact, or result: a row of a report."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        rank: 1 for the one most likely to change numbers.
        kind: what it is.
        name: which.
        first: the first document's value, as text.
        second: the second's.
        why: why it matters.
    """

    rank: int
    kind: DifferenceKind
    name: str
    first: str
    second: str
    why: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one document tells.

    Attributes:
        facts: of the machine, and of the run if there was one.
        reference: of the machine that the reference was recorded on; empty where it is the same
            document's own, or unknown.
        results: rows by a name that says everything about where they stand.
    """

    facts: Facts
    reference: Facts = field(default_factory=dict)
    results: Mapping[str, Row] = field(default_factory=dict)


def report_results(report: ParityReport) -> Mapping[str, Row]:
    """All rows of a report, by runtime, stage, component, case, tensor, branch and step."""
    found: dict[str, Row] = {}
    for candidate in report.candidates:
        for row in candidate.rows:
            name = _row_name(candidate.runtime, row)
            while name in found:
                name += " (again)"
            found[name] = row
    return found


def count_shared(first: Evidence, second: Evidence) -> int:
    """How many facts and rows both tell: with none there is nothing to compare."""
    facts = sum(len(_shared(kind, first.facts, second.facts)) for kind in FACT_KINDS)
    return facts + len(first.results.keys() & second.results.keys())


def find_differences(first: Evidence, second: Evidence) -> tuple[Difference, ...]:
    """All differences: facts by how likely they change numbers, then rows that came out otherwise.

    Facts that only one of the two tells are left out, but for environment variables: what is not
    named there is not set. So are rows where only one of the two has any.
    """
    weighed = _fact_differences(first.facts, second.facts)
    said = {(found.name, found.first, found.second) for _, found in weighed}
    for weight, found in _fact_differences(first.reference, second.reference):
        if (found.name, found.first, found.second) not in said:
            weighed.append((weight, replace(found, name=f"reference's {found.name}")))
    weighed.sort(key=lambda pair: pair[0])
    in_order = [found for _, found in weighed] + _result_differences(first.results, second.results)
    return tuple(replace(found, rank=rank) for rank, found in enumerate(in_order, start=1))


def _shared(kind: FactKind, first: Facts, second: Facts) -> list[str]:
    """Names that can be compared, in the first's order."""
    before, after = first.get(kind, {}), second.get(kind, {})
    if kind == "environment" and kind in first and kind in second:
        return list({**before, **after})
    return [name for name in before if name in after]


def _fact_differences(first: Facts, second: Facts) -> list[tuple[tuple[int, int], Difference]]:
    """Differences with their weight: the kind, then the name's place in it."""
    found = []
    for place, kind in enumerate(FACT_KINDS):
        for name in _shared(kind, first, second):
            before = first.get(kind, {}).get(name, "not set")
            after = second.get(kind, {}).get(name, "not set")
            if _is_same(kind, before, after):
                continue
            reason = why_a_fact_matters(kind, name, (before, after))
            difference = Difference(
                rank=0, kind=kind, name=name, first=before, second=after, why=reason.why
            )
            found.append(((place, reason.weight), difference))
    return found


def _is_same(kind: FactKind, first: str, second: str) -> bool:
    """Whether two values are equal; the numbers 5 and 5.0 are, the versions 1.1 and 1.10 not."""
    if first == second:
        return True
    if kind not in ("precondition", "setting"):
        return False
    try:
        return float(first) == float(second)
    except ValueError:
        return False


def _result_differences(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[Difference]:
    """Changed verdicts, then by how much further from the reference a row is, or nearer."""
    if not first or not second:
        return []
    found: list[tuple[tuple[bool, float], Difference]] = []
    for name in {**first, **second}:
        before, after = first.get(name), second.get(name)
        if before is None or after is None:
            weight, why = (True, 0.0), "a row without a counterpart"
        else:
            is_same_verdict = before.verdict == after.verdict
            factor = _factor(before.rel_l2, after.rel_l2)
            if is_same_verdict and factor == 1:
                continue
            distance = abs(math.log(factor)) if factor > 0 else math.inf
            weight, why = (is_same_verdict, -distance), _factor_words(factor)
        difference = Difference(
            rank=0, kind="result", name=name, first=_result(before), second=_result(after), why=why
        )
        found.append((weight, difference))
    found.sort(key=lambda pair: pair[0])
    return [difference for _, difference in found]


def _factor(before: float | None, after: float | None) -> float:
    """How many times the first error the second is; infinite where only one of them is a number."""
    if before == after or (_is_nan(before) and _is_nan(after)):
        return 1.0
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after):
        return math.inf
    return after / before if before > 0 else math.inf


def _is_nan(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def _factor_words(factor: float) -> str:
    if factor == 1:
        return "as far from the reference as before, but judged otherwise"
    if not math.isfinite(factor) or factor == 0:
        return "no factor lies between these"
    if factor < 1:
        return f"{_times(1 / factor)} nearer to the reference"
    return f"{_times(factor)} further from the reference"


def _times(factor: float) -> str:
    return f"{factor:,.0f} times" if factor >= 100 else f"{factor:.2g} times"


def _result(row: Row | None) -> str:
    if row is None:
        return "not there"
    shown = row.verdict.replace("_", " ")
    return shown if row.rel_l2 is None else f"{shown} {row.rel_l2:.2e}"


def _row_name(runtime: str, row: Row) -> str:
    step = f"step {row.step}" if row.step is not None else ""
    named = (row.component, step, row.case, row.tensor, row.branch or "")
    return f"{runtime} {row.stage.replace('_', ' ')}: {', '.join(part for part in named if part)}"
