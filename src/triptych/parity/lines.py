"""A report as lines: one for each stage and component, to be read and to be searched."""

import math
from collections.abc import Iterator, Sequence

from triptych.parity.floors import arithmetic_of
from triptych.parity.report import CandidateReport, ParityReport, Row, smallest_passing, worst_rows
from triptych.types import Precision


def candidate_lines(report: CandidateReport) -> Iterator[tuple[Row, str]]:
    """The worst row of each stage and component, and what it says, without its verdict.

    Where a stage has no numbers and nothing to find fault with, one line is for all components.
    """
    rows = worst_rows(report.rows)
    for stage in dict.fromkeys(row.stage for row in rows):
        of_stage = [row for row in rows if row.stage == stage]
        if all(row.verdict == "passed" and not row.has_numbers for row in of_stage):
            yield of_stage[0], _common_line(of_stage)
            continue
        for row in of_stage:
            yield row, verdict_line(row, declared=_declared(report, row))


def verdict_line(row: Row, *, declared: str) -> str:
    """What one row says, in one line."""
    numbers = [f"declared={declared}", f"ran={row.ran}"] if row.ran else []
    if row.rel_l2 is not None:
        numbers.append(f"rel-L2 {_number(row.rel_l2)}")
    if row.floor is not None:
        arithmetic = arithmetic_of(row.precision, row.ran) or row.precision
        numbers.append(f"floor({arithmetic.replace('_', ' ')}) {_number(row.floor)}")
    if row.ratio is not None:
        numbers.append(f"ratio {row.ratio:.2g}")
    if row.limit is not None:
        source = "" if row.limit_source == "constant" else f" ({row.limit_source})"
        numbers.append(f"limit {_number(row.limit)}{source}")
    if row.stage == "image" and row.psnr_db is not None and row.ssim is not None:
        numbers.append(f"PSNR {_number(row.psnr_db, '.1f')} dB SSIM {_number(row.ssim, '.4f')}")
    numbers += [f"{name} {_number(value, '.4g')}" for name, value in row.metrics.items()]
    if row.gain is not None and row.stage == "free_running":
        numbers.append(f"gain {row.gain:.2g}")
    return "  ".join(["  ".join(_place(row)), *numbers])


def summary_lines(report: ParityReport) -> Iterator[str]:
    """What else a check has to say: the limits that would pass, who is odd, what may be wrong."""
    for candidate in report.candidates:
        needed = smallest_passing(candidate.rows)
        if needed:
            texts = (
                f"{_words(stage)} {component} {_number(limit)}"
                for (stage, component), limit in needed.items()
            )
            yield f"{candidate.runtime}: smallest limits that would pass: {', '.join(texts)}"
        if candidate.first_divergent_step is not None:
            yield f"{candidate.runtime}: first divergent step: {candidate.first_divergent_step}"
    if report.odd_one_out is not None and report.odd_one_out.odd:
        odd = report.odd_one_out
        yield (
            f"odd one out: {odd.odd}, {odd.factor:.3g} times as far from the others as they are "
            "from each other"
        )


def _common_line(rows: Sequence[Row]) -> str:
    stage = f"{_words(rows[0].stage):<14}"
    if rows[0].stage == "precondition":
        return f"{stage}  {rows[0].case}"
    return f"{stage}  {', '.join(row.component for row in rows)}"


def _place(row: Row) -> Iterator[str]:
    yield f"{_words(row.stage):<14}"
    yield f"{row.component:<15}"
    step = [f"step {row.step}"] if row.step is not None else []
    branch = [row.branch] if row.branch is not None else []
    yield " ".join(part for part in (*step, row.case, row.tensor, *branch) if part)


def _declared(report: CandidateReport, row: Row) -> Precision | str:
    execution = report.executions.get(row.component)
    if execution is not None and execution.declared_precision is not None:
        return execution.declared_precision
    return row.precision


def _words(stage: str) -> str:
    return stage.replace("_", "-")


def _number(value: float, digits: str = ".1e") -> str:
    return f"{value:{digits}}" if math.isfinite(value) else str(value)
