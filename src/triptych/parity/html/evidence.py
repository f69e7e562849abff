"""What one candidate's check found: its worst rows, what it ran on, what may be wrong, all rows."""

import math
from collections.abc import Callable, Iterator, Sequence

from triptych.parity.html.markup import (
    NOTHING,
    Html,
    code,
    details,
    join,
    number,
    section,
    table,
    text,
    verdict_badge,
    words,
)
from triptych.parity.report import CandidateReport, Hint, Row, smallest_passing, worst_rows
from triptych.runtimes.base import Execution


def candidate_section(candidate: CandidateReport, *, identifier: str) -> Html:
    """Everything about one candidate but its curves and pictures."""
    lead = [
        Html(
            f"<p>{verdict_badge(candidate.verdict)} {_rows_word(candidate.rows)} "
            f"{text(candidate.format)} bundle {code(candidate.bundle)}.</p>"
        )
    ]
    if candidate.unavailable:
        lead.append(Html(f'<p class="note">Could not run here: {text(candidate.unavailable)}</p>'))
    if candidate.first_divergent_step is not None:
        lead.append(
            Html(
                '<p class="note">The free run first diverges at '
                f"<strong>step {candidate.first_divergent_step}</strong>.</p>"
            )
        )
    parts = [
        worst_table(candidate.rows),
        _hints(candidate.hints),
        audit_table(candidate),
        details(f"All {len(candidate.rows)} rows", rows_table(candidate.rows)),
    ]
    shown = parts if candidate.rows else [audit_table(candidate)]
    return section(candidate.runtime, *lead, *shown, identifier=identifier)


def worst_table(rows: Sequence[Row]) -> Html:
    """For each stage and component the row that is furthest from passing.

    A stage without numbers, in which every component passed, is one line.
    """
    passing = smallest_passing(rows)
    return table(
        "The worst of each stage and component",
        ("stage", "component", "verdict", "rel. L2", "limit", "limit from", "would pass at",
         "floor", "ratio", "class", "ran", "worst case", "reason"),
        (
            (
                words(row.stage),
                components,
                verdict_badge(row.verdict),
                number(row.rel_l2),
                number(row.limit),
                _named(row.limit_source),
                _passing(passing.get((row.stage, row.component))),
                number(row.floor),
                number(row.ratio, ".3g"),
                text(row.precision),
                _named(row.ran),
                _case(row),
                _named(row.reason),
            )
            for components, row in _condensed(worst_rows(rows))
        ),
        numeric=("rel. L2", "floor", "ratio", "limit", "would pass at"),
    )  # fmt: skip


def _condensed(rows: Sequence[Row]) -> Iterator[tuple[Html, Row]]:
    """Rows with the components that they speak for."""
    for stage in dict.fromkeys(row.stage for row in rows):
        found = [row for row in rows if row.stage == stage]
        if all(row.verdict == "passed" and not row.has_numbers for row in found):
            yield text(", ".join(row.component for row in found)), found[0]
        else:
            yield from ((text(row.component), row) for row in found)


def _passing(limit: float | None) -> Html:
    """The smallest limit that would pass all rows of a stage and component."""
    if limit is not None and not math.isfinite(limit):
        return Html('<span class="failed-text">none</span>')
    return number(limit)


def _case(row: Row) -> Html:
    step = f"step {row.step}" if row.step is not None else ""
    named = (step, row.case, row.tensor, row.branch or "")
    return text(", ".join(part for part in named if part)) or NOTHING


def _hints(hints: Sequence[Hint]) -> Html:
    if not hints:
        return Html("")
    items = (
        Html(
            f"<li><strong>{text(hint.cause)}</strong>\n<p>{text(hint.evidence)}</p>\n"
            f"<p>To find out: {code(hint.confirm)}</p></li>"
        )
        for hint in hints
    )
    return Html(
        '<div class="hints">\n<h3>What may be the cause</h3>\n'
        '<p class="remark">Hypotheses, not findings.</p>\n'
        f"<ol>\n{join(items)}\n</ol>\n</div>"
    )


def audit_table(candidate: CandidateReport) -> Html:
    """What every component declared, and what was seen to run."""
    if not candidate.executions:
        return Html("")
    return table(
        "Precision audit: declared, and seen to run",
        ("component", "declared", "ran", "run to run", "device", "engine", "details"),
        (
            (
                text(component),
                text(execution.declared_precision or "not read back"),
                _ran(execution),
                number(candidate.self_difference.get(component)),
                text(execution.device),
                text(f"{execution.runtime} {execution.version}"),
                execution_details(execution),
            )
            for component, execution in candidate.executions.items()
        ),
        numeric=("run to run",),
    )


def _ran(execution: Execution) -> Html:
    declared = execution.declared_precision
    if declared is None or declared == execution.precision:
        return text(execution.precision)
    return Html(f'<strong class="failed-text">✗ {text(execution.precision)}</strong>')


def execution_details(execution: Execution) -> Html:
    """Switches that change numbers, in one line."""
    return join(
        (Html(f"{words(name)}: {text(value)}") for name, value in execution.details.items()),
        between="; ",
    )


def _rows_word(rows: Sequence[Row]) -> Html:
    passed = sum(row.verdict in ("passed", "warned") for row in rows)
    return text(f"{passed} of {len(rows)} rows passed.")


def rows_table(rows: Sequence[Row]) -> Html:
    """Every row with every field; columns without a single value are left out."""
    shown = [
        (name, cell)
        for name, cell in _ROW_COLUMNS.items()
        if any(cell(row) != NOTHING for row in rows)
    ]
    return table(
        "All rows",
        ("#", *(name for name, _ in shown)),
        (
            (text(place), *(cell(row) for _, cell in shown))
            for place, row in enumerate(rows, start=1)
        ),
        numeric=_NUMERIC_COLUMNS,
    )


def _named(value: str | None) -> Html:
    return text(value) if value else NOTHING


def _whole(value: int | None) -> Html:
    return NOTHING if value is None else text(value)


def _shape(values: Sequence[int]) -> Html:
    return text(" x ".join(map(str, values))) if values else NOTHING


def _finite(row: Row) -> Html:
    """Whether both sides are: of a row that compares two tensors."""
    if row.finite_actual is None or row.finite_expected is None:
        return NOTHING
    sides = (("candidate", row.finite_actual), ("reference", row.finite_expected))
    lost = [name for name, is_finite in sides if not is_finite]
    return (
        Html(f'<strong class="failed-text">not {" and ".join(lost)}</strong>')
        if lost
        else text("yes")
    )


def _hash(value: str) -> Html:
    return Html(f'<code title="{text(value)}">{text(value[:8])}</code>') if value else NOTHING


_ROW_COLUMNS: dict[str, Callable[[Row], Html]] = {
    "stage": lambda row: words(row.stage),
    "component": lambda row: text(row.component),
    "verdict": lambda row: verdict_badge(row.verdict),
    "case": lambda row: _named(row.case),
    "tensor": lambda row: _named(row.tensor),
    "branch": lambda row: _named(row.branch),
    "step": lambda row: _whole(row.step),
    "t": lambda row: number(row.timestep, ".4g"),
    "sigma": lambda row: number(row.sigma, ".3g"),
    "class": lambda row: _named(row.precision),
    "ran": lambda row: _named(row.ran),
    "rel. L2": lambda row: number(row.rel_l2, ".2e"),
    "limit": lambda row: number(row.limit),
    "warns above": lambda row: number(row.warn_limit),
    "limit from": lambda row: _named(row.limit_source),
    "floor": lambda row: number(row.floor),
    "ratio": lambda row: number(row.ratio, ".3g"),
    "reason": lambda row: _named(row.reason),
    "finite": _finite,
    "cosine": lambda row: number(row.cosine, ".6f"),
    "PSNR dB": lambda row: number(row.psnr_db, ".1f"),
    "SSIM": lambda row: number(row.ssim, ".4f"),
    "other metrics": lambda row: text(
        ", ".join(f"{name} {value:.4g}" for name, value in row.metrics.items())
    ),
    "max abs": lambda row: number(row.max_abs, ".2e"),
    "at": lambda row: _shape(row.max_abs_index),
    "p99 abs": lambda row: number(row.p99_abs, ".2e"),
    "rms of reference": lambda row: number(row.rms_expected, ".3g"),
    "bias": lambda row: number(row.bias, ".1e"),
    "rel. L2 of x0": lambda row: number(row.denoised_rel_l2, ".2e"),
    "gain": lambda row: number(row.gain, ".3g"),
    "cosine with last error": lambda row: number(row.error_cosine, ".2f"),
    "errors added up": lambda row: number(row.additive_rel_l2, ".2e"),
    "shape": lambda row: _shape(row.shape),
    "size": lambda row: _whole(row.size or None),
    "inputs sha256": lambda row: _hash(row.feed_sha256),
    "output sha256": lambda row: _hash(row.actual_sha256),
}
"""Every field of a row, the ones that are looked at first on the left."""

_NUMERIC_COLUMNS = (
    "#", "step", "t", "sigma", "rel. L2", "limit", "warns above", "floor", "ratio", "cosine",
    "PSNR dB", "SSIM", "max abs", "p99 abs", "rms of reference", "bias", "rel. L2 of x0", "gain",
    "cosine with last error", "errors added up", "size",
)  # fmt: skip
