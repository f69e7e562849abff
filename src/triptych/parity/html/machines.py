"""Where a check ran and what it ran: machines side by side, settings, who stands apart."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict

from triptych.parity.facts import fingerprint_facts, value_text
from triptych.parity.fingerprint import Fingerprint
from triptych.parity.html.evidence import execution_details
from triptych.parity.html.markup import NOTHING, Html, code, number, section, table, text
from triptych.parity.report import OddOneOut, ParityReport, ReferenceRecord


def machines_section(report: ParityReport) -> Html:
    """The reference's machine and this one, with what differs marked."""
    here = _told(report.fingerprint)
    there = _told(report.reference.fingerprint) if report.reference else here
    if there == here:
        rows = [(text(name), text(value)) for name, value in here.items()]
        machines = table("The machine", ("", "this machine"), rows)
    else:
        machines = table(
            "Two machines; what differs is marked",
            ("", "the reference's machine", "this machine"),
            [_pair(name, there.get(name), here.get(name)) for name in {**there, **here}],
        )
    reference = _reference(report.reference) if report.reference else Html("")
    return section("Fingerprint", reference, machines, identifier="fingerprint")


def _told(fingerprint: Fingerprint) -> dict[str, str]:
    facts = fingerprint_facts(asdict(fingerprint))
    return {
        name: value
        for told in facts.values()
        for name, value in told.items()
        if value not in ("not installed", "absent")
    }


def _pair(name: str, there: str | None, here: str | None) -> tuple[Html, Html, Html]:
    first, second = (NOTHING if value is None else text(value) for value in (there, here))
    if there == here:
        return text(name), first, second
    return (
        Html(f'<span class="differs">≠ {text(name)}</span>'),
        Html(f"<mark>{first}</mark>"),
        Html(f"<mark>{second}</mark>"),
    )


def _reference(reference: ReferenceRecord) -> Html:
    ran = reference.execution
    floors = f" Floors measured: {', '.join(reference.floors)}." if reference.floors else ""
    return Html(
        f"<p>Reference: {text(f'{ran.runtime} {ran.version}')} on {text(ran.device)} in "
        f"{text(ran.precision)}.{text(floors)} {execution_details(ran)}.</p>"
    )


def run_section(report: ParityReport) -> Html:
    """What was asked for, and what was exactly equal on both sides."""
    parts = []
    settings = {name: value_text(value) for name, value in report.settings.items()}
    if settings:
        parts.append(_values("Settings", settings))
    if report.preconditions:
        parts.append(_values("Exactly equal on both sides", report.preconditions))
    return section("The run", *parts, identifier="run") if parts else Html("")


def _values(caption: str, values: Mapping[str, str]) -> Html:
    rows = [(text(name.replace("_", " ")), text(value)) for name, value in values.items()]
    return table(caption, ("", "value"), rows)


def odd_one_out_section(odd: OddOneOut | None) -> Html:
    """Everyone's distance to everyone, and who is far from all."""
    if odd is None:
        return Html("")
    if odd.odd:
        finding = Html(
            f"<p><strong>{text(odd.odd)}</strong> stands apart: {_factor(odd.factor)} as far from "
            "its nearest neighbour as the others are from each other.</p>"
        )
    else:
        finding = Html("<p>Nobody stands apart from all the others.</p>")
    rows = [
        (
            Html(f"<strong>{text(name)}</strong>") if name == odd.odd else text(name),
            *(
                NOTHING if column == row else number(value)
                for column, value in enumerate(distances)
            ),
        )
        for row, (name, distances) in enumerate(zip(odd.participants, odd.distances, strict=True))
    ]
    matrix = table(
        "Relative L2 of the last latents between any two",
        ("", *odd.participants),
        rows,
        numeric=odd.participants,
    )
    return section("Odd one out", finding, matrix, identifier="odd")


def _factor(factor: float) -> Html:
    return Html(f"{number(factor, '.2g')} times") if math.isfinite(factor) else text("infinitely")


def command_section(report: ParityReport) -> Html:
    """What to type for the same check."""
    if not report.command:
        return Html("")
    return section(
        "To repeat it", Html(f"<pre>{code(shlex.join(report.command))}</pre>"), identifier="command"
    )
