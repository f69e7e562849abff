"""A chart of errors over steps as SVG: logarithmic, with limits, floors, and what is not finite."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from triptych.parity.html.curves import CURVE_STAGES, Curve, RunCurves
from triptych.parity.html.markup import Html, join, number_word, text
from triptych.parity.report import Row, Stage

STAGE_LETTERS: dict[Stage, str] = {"teacher_forced": "L", "free_running": "F", "self_state": "S"}
"""How each line is labelled; the words are in the legend."""

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 100, 52, 44
"""Margins in the chart's own unit, a pixel at full width."""

_NO_NUMBER_Y = 34
"""The height of what has no place on a logarithmic axis: NaN and infinity."""

_LABEL_HEIGHT = 15
_MARK = 4.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Where a value lies. Charts that are to be compared share them.

    Attributes:
        num_steps: steps from left to right, beginning with 1.
        low: exponent of ten at the bottom.
        high: exponent of ten at the top.
    """

    num_steps: int
    low: int
    high: int

    def x(self, step: int) -> float:
        """Pixels from the left."""
        inside = _WIDTH - _LEFT - _RIGHT
        return _LEFT + inside * (step - 0.5) / self.num_steps

    def y(self, value: float) -> float:
        """Pixels from the top, of a finite value; zero lies at the bottom edge."""
        if value <= 0:
            return float(_HEIGHT - _BOTTOM)
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(max(share, 0.0), 1.0)


def common_axes(runs: Iterable[RunCurves]) -> Axes:
    """Axes that hold every error, limit and floor of these runs."""
    found = list(runs)
    pairs = [pair for run in found for curve in run.curves for pair in curve.rows.items()]
    stops = [step for run in found for step, _ in run.stops]
    values = [
        value
        for _, row in pairs
        for value in (row.rel_l2, row.limit, row.floor)
        if value is not None and math.isfinite(value) and value > 0
    ]
    low = math.floor(math.log10(min(values, default=1e-6)))
    high = math.ceil(math.log10(max(values, default=1.0)))
    return Axes(
        num_steps=max([1, *(step for step, _ in pairs), *stops]),
        low=low,
        high=max(high, low + 1),
    )


def curve_chart(run: RunCurves, axes: Axes, *, title: str, identifier: str) -> Html:
    """One run as an SVG drawing that says in words, too, what it shows.

    Args:
        run: its lines.
        axes: where values lie.
        title: who ran it.
        identifier: unique in the page.
    """
    words = [_curve_words(curve) for curve in run.curves]
    description = " ".join([*words, *(f"Stopped at step {step}." for step, _ in run.stops)])
    return Html(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-labelledby="{identifier}-title {identifier}-words">\n'
        f'<title id="{identifier}-title">{text(f"Relative L2 by step: {title}")}</title>\n'
        f'<desc id="{identifier}-words">{text(description)}</desc>\n'
        f"{_grid(axes)}\n{_no_number_line(run)}\n"
        f"{join(_limits(curve, axes) for curve in run.curves)}\n"
        f"{join(_line(curve, axes) for curve in run.curves)}\n"
        f"{_end_labels(run.curves, axes)}\n"
        f"{join(_marks(curve, axes) for curve in run.curves)}\n{_stops(run, axes)}\n</svg>"
    )


def stage_key(stage: Stage) -> Html:
    """A stage's line and mark, for a legend."""
    return Html(
        f'<svg class="key {stage}" viewBox="0 0 40 12" aria-hidden="true">'
        f'<path class="line" d="M2 6H38"/>{_mark(stage, 20.0, 6.0)}</svg>'
    )


def _grid(axes: Axes) -> Html:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    skip = math.ceil((axes.high - axes.low) / 7)
    parts = []
    for exponent in range(axes.low, axes.high + 1):
        y = axes.y(10.0**exponent)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        if (exponent - axes.low) % skip == 0:
            power = str(exponent).replace("-", "&#8722;")
            parts.append(
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">10'
                f'<tspan class="power" dy="-5">{power}</tspan></text>'
            )
    every = math.ceil(axes.num_steps / 12)
    parts.extend(
        f'<text x="{axes.x(step):.1f}" y="{bottom + 18}" text-anchor="middle">{step}</text>'
        for step in range(1, axes.num_steps + 1, every)
    )
    middle = (_LEFT + right) / 2
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>')
    parts.append('<text x="8" y="16">relative L2</text>')
    return Html("\n".join(parts))


def _limits(curve: Curve, axes: Axes) -> Html:
    """What still passes, and what the same arithmetic costs in PyTorch, step by step."""
    parts = []
    for kind in ("limit", "floor"):
        levels = [
            (step, row.limit if kind == "limit" else row.floor) for step, row in curve.rows.items()
        ]
        half = (axes.x(2) - axes.x(1)) / 2
        path = "".join(
            f"M{axes.x(step) - half:.1f} {axes.y(level):.1f}h{2 * half:.1f}"
            for step, level in levels
            if level is not None and math.isfinite(level)
        )
        if path:
            shown = f"{STAGE_LETTERS[curve.stage]}: {kind}"
            parts.append(
                f'<path class="{kind} {curve.stage}" d="{path}"><title>{shown}</title></path>'
            )
    return Html("\n".join(parts))


def _line(curve: Curve, axes: Axes) -> Html:
    """The measured steps in a line, which has a gap where one is not a finite number."""
    path, is_drawing = "", False
    for step, row in curve.rows.items():
        if not _is_drawn(row) or row.rel_l2 is None:
            is_drawing = False
            continue
        path += f"{'L' if is_drawing else 'M'}{axes.x(step):.1f} {axes.y(row.rel_l2):.1f}"
        is_drawing = True
    return Html(f'<path class="line {curve.stage}" d="{path}"/>' if path else "")


def _marks(curve: Curve, axes: Axes) -> Html:
    parts = []
    for step, row in curve.rows.items():
        x, shown = axes.x(step), text(_row_words(curve.stage, step, row))
        if _is_drawn(row) and row.rel_l2 is not None:
            mark = _mark(curve.stage, x, axes.y(row.rel_l2))
            parts.append(f'<g class="{curve.stage} {row.verdict}"><title>{shown}</title>{mark}</g>')
            continue
        x += 14 * (CURVE_STAGES.index(curve.stage) - 1)
        parts.append(
            f'<g class="no-number {curve.stage}"><title>{shown}</title>{_cross(x)}'
            f'<text x="{x:.1f}" y="{_NO_NUMBER_Y - 9}" text-anchor="middle">'
            f"{STAGE_LETTERS[curve.stage]}</text></g>"
        )
    return Html("\n".join(parts))


def _stops(run: RunCurves, axes: Axes) -> Html:
    """What ended a run: NaN comes out of a network before there is an error to draw."""
    parts = [
        f'<g class="no-number stop"><title>{text(f"{row.case}: {row.reason}")}</title>'
        f"{_cross(axes.x(step) + 12 * place)}</g>"
        for place, (step, row) in enumerate(run.stops)
    ]
    return Html("\n".join(parts))


def _cross(x: float) -> Html:
    return Html(f'<path d="M{x - 4:.1f} {_NO_NUMBER_Y - 4}l8 8m0 -8l-8 8"/>')


def _no_number_line(run: RunCurves) -> Html:
    """The line on which marks stand that have no place on a logarithmic axis."""
    lost = [row for curve in run.curves for row in curve.rows.values() if not _is_drawn(row)]
    if not lost and not run.stops:
        return Html("")
    is_measured = run.stops or any(row.rel_l2 is not None for row in lost)
    word = "not finite" if is_measured else "not measured"
    return Html(
        f'<path class="grid" d="M{_LEFT} {_NO_NUMBER_Y}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_WIDTH - _RIGHT + 6}" y="{_NO_NUMBER_Y + 4}">{word}</text>'
    )


def _mark(stage: Stage, x: float, y: float) -> Html:
    """A circle for L, a square for F, a triangle for S: told apart without their colours."""
    size = _MARK
    if stage == "teacher_forced":
        return Html(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>')
    if stage == "free_running":
        return Html(
            f'<rect class="mark" x="{x - size + 0.5:.1f}" y="{y - size + 0.5:.1f}" '
            f'width="{2 * size - 1}" height="{2 * size - 1}"/>'
        )
    return Html(
        f'<path class="mark" d="M{x:.1f} {y - size - 1:.1f}l{size + 1} {2 * size}'
        f'h{-2 * size - 2}z"/>'
    )


def _end_labels(curves: Sequence[Curve], axes: Axes) -> Html:
    """The lines and limits by name at the right, moved apart where they would overlap."""
    wanted: dict[str, tuple[float, str]] = {}
    for curve in curves:
        letter, last = STAGE_LETTERS[curve.stage], list(curve.rows.values())[-1]
        drawn = [row.rel_l2 for row in curve.rows.values() if _is_drawn(row) and row.rel_l2]
        if drawn:
            wanted[letter] = (axes.y(drawn[-1]), f"end {curve.stage}")
        for name, level in (("limit", last.limit), ("floor", last.floor)):
            if level is not None and math.isfinite(level):
                wanted[f"{name} {letter}"] = (axes.y(level), "")
    parts, lowest = [], -math.inf
    for label, (y, kind) in _merged(wanted):
        lowest = max(y, lowest + _LABEL_HEIGHT)
        parts.append(
            f'<text class="{kind}" x="{_WIDTH - _RIGHT + 6}" y="{lowest + 4:.1f}">{label}</text>'
        )
    return Html("\n".join(parts))


def _merged(wanted: dict[str, tuple[float, str]]) -> list[tuple[str, tuple[float, str]]]:
    """Labels from top to bottom; limits at one height share a label: limit L, F."""
    merged: dict[tuple[str, float], tuple[str, str]] = {}
    for label, (y, kind) in wanted.items():
        name, _, letter = label.partition(" ")
        key = (name, round(y, 1))
        merged[key] = (f"{merged[key][0]}, {letter}" if key in merged else label, kind)
    return sorted(
        ((label, (y, kind)) for (_, y), (label, kind) in merged.items()),
        key=lambda placed: placed[1][0],
    )


def _is_drawn(row: Row) -> bool:
    """Whether a line can pass through it; zero lies at the bottom edge."""
    return row.rel_l2 is not None and math.isfinite(row.rel_l2)


def _row_words(stage: Stage, step: int, row: Row) -> str:
    shown = f"{stage.replace('_', ' ')}, step {step}"
    if row.timestep is not None:
        shown += f", t = {row.timestep:g}"
    shown += f": {'not measured' if row.rel_l2 is None else number_word(row.rel_l2, '.2e')}"
    for name, value in (("limit", row.limit), ("floor", row.floor), ("gain", row.gain)):
        if value is not None:
            shown += f", {name} {number_word(value, '.2g')}"
    reason = f" ({row.reason})" if row.reason else ""
    return f"{shown}, {row.verdict.replace('_', ' ')}{reason}"


def _curve_words(curve: Curve) -> str:
    steps = list(curve.rows)
    first, last = curve.rows[steps[0]], curve.rows[steps[-1]]
    lost = [step for step, row in curve.rows.items() if not _is_drawn(row)]
    shown = (
        f"{STAGE_LETTERS[curve.stage]}, {curve.stage.replace('_', ' ')}: "
        f"{_value_word(first)} at step {steps[0]}, {_value_word(last)} at step {steps[-1]}"
    )
    return f"{shown}; no finite number at {lost}." if lost else f"{shown}."


def _value_word(row: Row) -> str:
    return "not measured" if row.rel_l2 is None else number_word(row.rel_l2)
