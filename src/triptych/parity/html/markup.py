"""Pieces of HTML. Text becomes `Html` through `text` alone, which escapes it."""

import html
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NewType

from triptych.types import Verdict

Html = NewType("Html", str)
"""Markup that is safe to put into a page."""

VERDICT_SYMBOLS: dict[Verdict, str] = {"passed": "✓", "warned": "▲", "failed": "✗", "not_run": "○"}
"""Beside the word and the colour, for those who see no colour."""

_NARROW = 4
"""Columns of a table that is not stretched to the page's width."""

NOTHING = Html('<span class="nothing">-</span>')
"""What was not measured."""


def text(value: str | int) -> Html:
    """Anything as text: what looks like markup in it is shown, not obeyed.

    Half a surrogate pair, as Python reads a file's name that is no UTF-8, becomes a question mark.
    """
    return Html(html.escape(str(value).encode("utf-8", "replace").decode("utf-8")))


def join(parts: Iterable[Html], *, between: str = "\n") -> Html:
    """Pieces one after the other."""
    return Html(between.join(parts))


def words(value: str) -> Html:
    """A name of ours as words: free_running becomes free running."""
    return text(value.replace("_", " "))


def number_word(value: float, digits: str = ".1e") -> str:
    """A number for people, 1.2e-6; NaN and infinity by their names."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "NaN")
    if value == 0:
        return "0"
    return re.sub(
        r"e([+-])0*(\d)", lambda found: f"e{found[1].strip('+')}{found[2]}", f"{value:{digits}}"
    )


def number(value: float | None, digits: str = ".1e") -> Html:
    """A number, standing out where it is not finite; a dash where there is none."""
    if value is None:
        return NOTHING
    shown = text(number_word(value, digits))
    return shown if math.isfinite(value) else Html(f'<strong class="failed-text">{shown}</strong>')


def verdict_badge(verdict: Verdict) -> Html:
    """A verdict by symbol, word and colour."""
    symbol = VERDICT_SYMBOLS[verdict]
    return Html(
        f'<span class="verdict {verdict}"><span aria-hidden="true">{symbol}</span> '
        f"{words(verdict)}</span>"
    )


def code(value: str) -> Html:
    """Something to be typed or found in a file; a dash for nothing."""
    return Html(f"<code>{text(value)}</code>") if value else NOTHING


def section(title: str, *content: Html, identifier: str, level: int = 2) -> Html:
    """A part of the page under a heading, named by it."""
    return Html(
        f'<section aria-labelledby="{text(identifier)}">\n'
        f'<h{level} id="{text(identifier)}">{text(title)}</h{level}>\n'
        f"{join(content)}\n</section>"
    )


def details(summary: str, content: Html) -> Html:
    """Something folded away."""
    return Html(f"<details>\n<summary>{text(summary)}</summary>\n{content}\n</details>")


def definitions(pairs: Iterable[tuple[str, Html]]) -> Html:
    """Names and what they stand for."""
    items = (Html(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>") for name, value in pairs)
    return Html(f'<dl class="facts">\n{join(items)}\n</dl>')


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Html]],
    *,
    numeric: Collection[str] = (),
) -> Html:
    """A table in a container of its own, which scrolls where the screen is narrow.

    Args:
        caption: what it shows.
        headings: of its columns; the first column's cells head their rows.
        rows: cells, as many as headings.
        numeric: headings of columns of numbers.
    """
    classes = [' class="number"' if heading in numeric else "" for heading in headings]
    head = "".join(
        f'<th scope="col"{found}>{text(heading)}</th>'
        for heading, found in zip(headings, classes, strict=True)
    )
    body = join(_table_row(cells, classes) for cells in rows)
    width = ' class="wide"' if len(headings) > _NARROW else ""
    return Html(
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0">\n'
        f"<table{width}>\n<caption>{text(caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _table_row(cells: Sequence[Html], classes: Sequence[str]) -> Html:
    first, *others = zip(cells, classes, strict=True)
    tail = "".join(f"<td{found}>{cell}</td>" for cell, found in others)
    return Html(f'<tr><th scope="row"{first[1]}>{first[0]}</th>{tail}</tr>')
