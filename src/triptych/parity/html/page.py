"""The whole page: one file that needs no network, for looking at and for attaching to a review."""

import base64
import hashlib
from collections.abc import Collection
from importlib import resources

from triptych.parity.html.chart import STAGE_LETTERS, common_axes, curve_chart, stage_key
from triptych.parity.html.curves import CURVE_STAGES, RunCurves, run_curves
from triptych.parity.html.evidence import candidate_section
from triptych.parity.html.machines import (
    command_section,
    machines_section,
    odd_one_out_section,
    run_section,
)
from triptych.parity.html.markup import (
    NOTHING,
    VERDICT_SYMBOLS,
    Html,
    code,
    definitions,
    join,
    number,
    section,
    table,
    text,
    verdict_badge,
    words,
)
from triptych.parity.html.pictures import Pictures, picture_section
from triptych.parity.report import CandidateReport, ParityReport, Stage, worst_rows
from triptych.types import Verdict

_HEADLINES: dict[Verdict, str] = {
    "passed": "Still the model",
    "warned": "Still the model, further off than it should be",
    "failed": "Not the model any more",
    "not_run": "Not checked to the end",
}

_STAGE_WORDS: dict[Stage, str] = {
    "teacher_forced": "teacher-forced: each step on the reference's own latents",
    "free_running": "free-running: the candidate's own run",
    "self_state": "self-state: against the reference's U-Net, both on the candidate's latents",
}


def report_page(report: ParityReport, *, pictures: Pictures | None = None) -> str:
    """A report as one HTML document.

    It holds its pictures, styles and script, and forbids itself any connection.

    Args:
        report: what to show.
        pictures: by participant, "reference" first, then each runtime's name; of each the steps,
            counted from 1, that were saved: uint8 [1, height_px, width_px, 3].
    """
    files = resources.files("triptych.parity.html")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    candidates = (
        candidate_section(candidate, identifier=f"candidate-{place}")
        for place, candidate in enumerate(report.candidates)
    )
    body = join(
        (
            _header(report),
            _overview(report),
            _curves_section(report),
            picture_section(pictures or {}),
            *candidates,
            odd_one_out_section(report.odd_one_out),
            run_section(report),
            machines_section(report),
            command_section(report),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(_title(report))}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def _policy(script: str) -> str:
    """No connections; pictures from the page itself; this one script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _title(report: ParityReport) -> str:
    runtimes = ", ".join(candidate.runtime for candidate in report.candidates)
    return f"{VERDICT_SYMBOLS[report.verdict]} {runtimes}: {report.verdict.replace('_', ' ')}"


def _header(report: ParityReport) -> Html:
    reference = report.reference
    facts = [
        ("Reference", _reference_words(report)),
        ("Checked on", text(report.fingerprint.summary)),
        ("Checked", text(report.created.replace("T", " ").replace("+00:00", " UTC"))),
    ]
    if reference is not None and reference.fingerprint != report.fingerprint:
        facts.insert(1, ("Recorded on", text(reference.fingerprint.summary)))
    symbol = VERDICT_SYMBOLS[report.verdict]
    return Html(
        f'<header class="{report.verdict}">\n<p class="eyebrow">triptych check</p>\n'
        f'<h1><span class="symbol" aria-hidden="true">{symbol}</span> '
        f"{words(report.verdict.capitalize())}</h1>\n"
        f'<p class="headline">{text(_HEADLINES[report.verdict])}</p>\n{definitions(facts)}\n'
        "</header>"
    )


def _reference_words(report: ParityReport) -> Html:
    reference = report.reference
    if reference is None:
        return text("none")
    ran = reference.execution
    return Html(
        f"{text(reference.kind)} {code(reference.name)}, "
        f"{text(f'{ran.runtime} {ran.version}, {ran.device}, {ran.precision}')}"
    )


def _overview(report: ParityReport) -> Html:
    """A line for each candidate: what it ran in, what decided its verdict, how its run ended."""
    return section(
        "Candidates",
        table(
            "Each engine against the reference",
            (
                "engine",
                "verdict",
                "ran",
                "what decided",
                "first divergent step",
                "last rel. L2",
                "limit",
                "rows passed",
                "bundle",
            ),
            (_overview_row(candidate) for candidate in report.candidates),
            numeric=("first divergent step", "last rel. L2", "limit", "rows passed"),
        ),
        identifier="candidates",
    )


def _overview_row(candidate: CandidateReport) -> tuple[Html, ...]:
    ran = dict.fromkeys(execution.precision for execution in candidate.executions.values())
    free = [row for row in candidate.rows if row.stage == "free_running" and row.has_numbers]
    last = max(free, key=lambda row: row.step or 0, default=None)
    passed = sum(row.verdict in ("passed", "warned") for row in candidate.rows)
    divergent = candidate.first_divergent_step
    return (
        Html(f"<strong>{text(candidate.runtime)}</strong>"),
        verdict_badge(candidate.verdict),
        text(", ".join(ran)) or NOTHING,
        text(_decisive(candidate)) or NOTHING,
        NOTHING if divergent is None else text(divergent),
        number(last.rel_l2 if last else None),
        number(last.limit if last else None),
        text(f"{passed} of {len(candidate.rows)}"),
        code(candidate.bundle),
    )


def _decisive(candidate: CandidateReport) -> str:
    """The first stage that did not pass, and why; where all did, nothing needs saying."""
    if candidate.unavailable:
        return candidate.unavailable
    if candidate.verdict == "passed":
        return ""
    decisive = (row for row in worst_rows(candidate.rows) if row.verdict == candidate.verdict)
    for row in decisive:
        place = f"{row.stage.replace('_', ' ')} {row.component}"
        return f"{place}: {row.reason}" if row.reason else place
    return ""


def _curves_section(report: ParityReport) -> Html:
    """The charts of all candidates on the same axes, and what their lines mean."""
    runs = [(found, run_curves(found.rows)) for found in report.candidates]
    everything = [run for _, found in runs for run in found]
    if not everything:
        return Html("")
    axes = common_axes(everything)
    figures = []
    for place, (candidate, found) in enumerate(runs):
        for number_of_run, run in enumerate(found):
            identifier = f"curves-{place}-{number_of_run}"
            chart = curve_chart(run, axes, title=candidate.runtime, identifier=identifier)
            figures.append(_chart_figure(candidate, run, chart))
    stages = {curve.stage for run in everything for curve in run.curves}
    return section(
        "Step by step",
        Html(f'<div class="charts">\n{join(figures)}\n</div>'),
        _legend(stages),
        identifier="curves",
    )


def _chart_figure(candidate: CandidateReport, run: RunCurves, chart: Html) -> Html:
    case = f", {run.case}" if run.case else ""
    stops = join(
        Html(f'<p class="failed-text">✗ Stopped at step {step}: {text(row.case)}</p>')
        for step, row in run.stops
    )
    return Html(
        f"<figure>\n<figcaption><strong>{text(candidate.runtime)}</strong>{text(case)} "
        f"{verdict_badge(candidate.verdict)}</figcaption>\n"
        f"{chart}\n{stops}\n</figure>"
    )


def _legend(stages: Collection[Stage]) -> Html:
    items = (
        Html(
            f"<li>{stage_key(stage)} <strong>{STAGE_LETTERS[stage]}</strong> "
            f"{text(_STAGE_WORDS[stage])}</li>"
        )
        for stage in CURVE_STAGES
        if stage in stages
    )
    return Html(
        f'<ul class="legend">\n{join(items)}\n</ul>\n<p class="remark">Relative L2, on a '
        "logarithmic scale: ‖candidate &minus; reference‖ / ‖reference‖. Long lines are limits, "
        "dotted ones what the same arithmetic costs in PyTorch.</p>"
    )
