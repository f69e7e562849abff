"""The saved steps side by side: every runtime's picture, and how it differs from the reference."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from triptych.parity.html.markup import Html, join, section, text
from triptych.types import Array

Pictures: TypeAlias = Mapping[str, Mapping[int, Array]]
"""By participant, the reference first, and step, from 1: uint8 [1, height_px, width_px, 3]. Not
all need to be of one size, which a shared `ImagePixels` would say."""

MAX_AMPLIFICATION = 32
"""Differences are not multiplied by more: a rounding error of one level stays dark."""

MAX_SIDE_PX = 512
"""Larger pictures are made smaller by whole factors, so that a page stays some 10 MB."""

_SMALL_PX = 160
"""Pictures up to this size are shown with their pixels as squares."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How one picture differs from another, in levels of 8 bits.

    Attributes:
        levels: |actual - expected| of every channel, uint8 [height_px, width_px, 3].
        largest: of all.
        mean: of all.
    """

    levels: Array
    largest: int
    mean: float


def picture_difference(actual: Array, expected: Array) -> Difference | None:
    """Measure two pictures, uint8 [1, height_px, width_px, 3]; None where not of one size."""
    if actual.shape != expected.shape:
        return None
    levels = np.abs(actual[0].astype(np.int16) - expected[0].astype(np.int16)).astype(np.uint8)
    return Difference(levels=levels, largest=int(levels.max()), mean=float(levels.mean()))


def amplification(largest: int) -> int:
    """What to multiply differences by, so that the largest fills the range."""
    return max(1, min(MAX_AMPLIFICATION, 255 // max(largest, 1)))


def picture_section(pictures: Pictures) -> Html:
    """All saved steps, one shown at a time where scripts run, each below the other where not."""
    steps = sorted({step for found in pictures.values() for step in found})
    if not steps:
        return Html("")
    reference, *candidates = pictures
    factors = {
        name: amplification(_largest(pictures[name], pictures[reference])) for name in candidates
    }
    shown = (_step(step, pictures, factors) for step in steps)
    return section(
        "Pictures",
        _introduction(pictures),
        Html('<div class="player">'),
        _controls(steps, wipes=bool(candidates)),
        join(shown),
        Html("</div>"),
        identifier="pictures",
    )


def _largest(actual: Mapping[int, Array], expected: Mapping[int, Array]) -> int:
    """The largest difference of all steps: one factor for all of them lets errors be seen grow."""
    found = (
        picture_difference(actual[step], expected[step]) for step in actual if step in expected
    )
    return max((difference.largest for difference in found if difference), default=0)


def _introduction(pictures: Pictures) -> Html:
    remark = (
        "Each picture is the run as it stood after that step; below it, how far each pixel is from "
        "the reference's."
    )
    size_px = max(max(found.shape[1:3]) for run in pictures.values() for found in run.values())
    factor = _shrinking(size_px)
    if factor > 1:
        remark += (
            f" Shown at 1/{factor} of their size; of {factor} by {factor} pixels the largest "
            "difference is kept."
        )
    return Html(f'<p class="remark">{text(remark)}</p>')


def _controls(steps: Sequence[int], *, wipes: bool) -> Html:
    """Sliders, shown by the script that they need."""
    wipe = (
        '<label for="wipe">Wipe to the reference</label>\n'
        '<input type="range" id="wipe" min="0" max="100" value="0" step="1">\n'
        '<output for="wipe" id="wipe-share">0 %</output>'
    )
    return Html(
        '<div class="controls" hidden>\n<div><label for="step">Step</label>\n'
        f'<input type="range" id="step" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}" '
        f'step="1">\n<output for="step" id="step-shown">{steps[-1]}</output></div>\n'
        f"<div>{wipe if wipes else ''}</div>\n</div>"
    )


def _step(step: int, pictures: Pictures, factors: Mapping[str, int]) -> Html:
    reference, *candidates = pictures
    expected = pictures[reference].get(step)
    columns = [_column(reference, step, expected)]
    for name in candidates:
        actual = pictures[name].get(step)
        found = None
        if actual is not None and expected is not None:
            found = _difference_figure(name, actual, expected, factor=factors[name])
        columns.append(_column(name, step, actual, below=found))
    return Html(
        f'<div class="step" data-step="{step}">\n<h3>Step {step}</h3>\n'
        f'<div class="columns">\n{join(columns)}\n</div>\n</div>'
    )


def _column(name: str, step: int, pixels: Array | None, *, below: Html | None = None) -> Html:
    if pixels is None:
        picture = Html('<div class="frame missing">no picture</div>')
    else:
        picture = _frame(_shrunk(pixels[0], by_maximum=False), f"{name} after step {step}")
    figure = f"<figure>\n{picture}\n<figcaption>{text(name)}</figcaption>\n</figure>"
    return Html(f'<div class="column">\n{figure}\n{below or ""}\n</div>')


def _difference_figure(name: str, actual: Array, expected: Array, *, factor: int) -> Html:
    found = picture_difference(actual, expected)
    if found is None:
        return Html('<p class="remark">of another size than the reference</p>')
    amplified = np.minimum(found.levels.astype(np.int32) * factor, 255).astype(np.uint8)
    frame = _frame(_shrunk(amplified, by_maximum=True), f"how {name} differs, times {factor}")
    caption = "no difference: all pixels are equal"
    if found.largest:
        caption = (
            f"difference &times; {factor}: at most {found.largest} of 255 levels, "
            f"mean {found.mean:.2g}"
        )
    return Html(
        f'<figure class="difference">\n{frame}\n<figcaption>{caption}</figcaption>\n</figure>'
    )


def _frame(pixels: Array, description: str) -> Html:
    height_px, width_px = pixels.shape[:2]
    frame = "frame small" if max(height_px, width_px) <= _SMALL_PX else "frame"
    return Html(
        f'<div class="{frame}"><img src="{_png_uri(pixels)}" alt="{text(description)}" '
        f'width="{width_px}" height="{height_px}"></div>'
    )


def _shrinking(size_px: int) -> int:
    return -(-size_px // MAX_SIDE_PX)


def _shrunk(pixels: Array, *, by_maximum: bool) -> Array:
    """At most MAX_SIDE_PX wide and high: the mean of each block, or its largest value."""
    factor = _shrinking(max(pixels.shape[:2]))
    rest = [(0, -size % factor) for size in pixels.shape[:2]]
    whole = np.pad(pixels, [*rest, (0, 0)], mode="edge")
    height, width = whole.shape[0] // factor, whole.shape[1] // factor
    blocks = whole.reshape(height, factor, width, factor, 3)
    if by_maximum:
        return np.asarray(blocks.max(axis=(1, 3)))
    mean: Array = np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return mean


def _png_uri(pixels: Array) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
