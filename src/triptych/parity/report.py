"""A check's outcome: rows of evidence, each with its verdict, and the verdict of all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from triptych.parity.compare import Comparison, comparison_record
from triptych.runtimes.base import Execution
from triptych.types import ComponentName, Precision, Verdict

Stage: TypeAlias = Literal[
    "contract", "precision", "component", "teacher_forced", "free_running", "image"
]
"""contract: what the format's own clients insist on, read from the files. precision: what a network
declares to compute in, against what it was seen to run in. component: one network on one feed.
teacher_forced: the U-Net on the reference's own latents. free_running: the candidate's own run.
image: its picture, as floats."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison, or the reason why there is none.

    Attributes:
        stage: what was compared.
        component: which network, or the one that the run is about.
        case: what was fed.
        step: steps taken, in a trajectory.
        precision: the arithmetic the candidate declares.
        limit: relative L2 that still passes.
        comparison: the numbers; None where it did not run, gave NaN, or is about no numbers.
        verdict: passed, failed or not_run.
        reason: why it failed or did not run.
    """

    stage: Stage
    component: ComponentName
    case: str
    step: int | None = None
    precision: Precision
    limit: float
    comparison: Comparison | None
    verdict: Verdict
    reason: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """A whole check.

    Attributes:
        reference: what the reference ran on; None where it was not run.
        candidates: what each component of the candidate ran on.
        settings: of the run, for people.
        rows: the evidence.
        unavailable: why the candidate's engine could not run here at all; empty where it did.
    """

    reference: Execution | None
    candidates: Mapping[ComponentName, Execution]
    settings: Mapping[str, object]
    rows: tuple[Row, ...]
    unavailable: str = ""

    @property
    def verdict(self) -> Verdict:
        """Failed if anything failed; passed only if everything ran and passed."""
        verdicts = {row.verdict for row in self.rows}
        if "failed" in verdicts:
            return "failed"
        return "passed" if verdicts == {"passed"} else "not_run"

    def to_json(self) -> dict[str, object]:
        """The report as plain values for one JSON document; NaN and infinity are strings."""
        return {
            "verdict": self.verdict,
            "reference": None if self.reference is None else _execution_record(self.reference),
            "candidates": {
                name: _execution_record(execution) for name, execution in self.candidates.items()
            },
            "settings": dict(self.settings),
            "unavailable": self.unavailable,
            "rows": [_row_record(row) for row in self.rows],
        }


def worst_rows(report: ParityReport) -> tuple[Row, ...]:
    """For each stage and component the row furthest from passing: a table that fits a screen."""
    worst: dict[tuple[Stage, ComponentName], Row] = {}
    for row in report.rows:
        key = (row.stage, row.component)
        if key not in worst or _badness(row) > _badness(worst[key]):
            worst[key] = row
    return tuple(worst.values())


def _badness(row: Row) -> tuple[int, float]:
    rank = {"passed": 0, "not_run": 1, "failed": 2}[row.verdict]
    distance = math.nan if row.comparison is None else row.comparison.rel_l2
    return rank, math.inf if math.isnan(distance) else distance


def _execution_record(execution: Execution) -> dict[str, object]:
    return {
        "runtime": execution.runtime,
        "version": execution.version,
        "device": execution.device,
        "precision": execution.precision,
        "declared_precision": execution.declared_precision,
        "details": dict(execution.details),
    }


def _row_record(row: Row) -> dict[str, object]:
    numbers = {} if row.comparison is None else comparison_record(row.comparison)
    return {
        **numbers,
        "stage": row.stage,
        "component": row.component,
        "case": row.case,
        "step": row.step,
        "precision": row.precision,
        "limit": row.limit,
        "verdict": row.verdict,
        "reason": row.reason,
    }
