"""Scenes as pictures, with the slight variation that pictures of one caption have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, pi, radians, sin, sqrt
from typing import TypeAlias, final

import numpy as np
from PIL import Image, ImageDraw

from triptych.scenes.scene import COLORS, Place, Rgb, Scene, ShapeName, SizeName
from triptych.types import Picture

PICTURE_PX = 128

EXTENT_PX: Mapping[SizeName, float] = {"small": 32.0, "large": 56.0}
"""Width of a shape that stands upright."""

CENTER_PX: Mapping[Place, tuple[float, float]] = {
    "center": (64, 64),
    "left": (36, 64),
    "right": (92, 64),
    "top": (64, 36),
    "bottom": (64, 92),
}
"""Where the middle of a shape is: from the left, from the top."""

_RING_HOLE = 0.55
"""The hole's share of a ring's width."""

_SQUARE_SIDE = 0.92
"""Of the extent: nearer to the area of the disc."""

_TRIANGLE_RADIUS = 0.6
"""Of the circle around the triangle, of the extent."""

UNIT_AREAS: Mapping[ShapeName, float] = {
    "circle": pi / 4,
    "square": _SQUARE_SIDE**2,
    "triangle": 3 * sqrt(3) / 4 * _TRIANGLE_RADIUS**2,
    "ring": pi / 4 * (1 - _RING_HOLE**2),
}
"""Area of each shape whose extent is 1."""

_SUPERSAMPLING = 4
"""Pixels drawn for one kept, in each direction: what smooths the edges."""

_JITTER_PX, _JITTER_COLOR, _JITTER_SIZE, _JITTER_DEGREES = 3.0, 8, 0.08, 8.0

Outline: TypeAlias = Callable[[ImageDraw.ImageDraw, float, float, float, float], None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What a caption leaves open. The default is the scene exactly.

    Attributes:
        shift_px: of the shape, to the right and down.
        scale: of the shape's size.
        turn_degrees: of the shape, clockwise.
        color_shift: added to red, green and blue of the shape.
        background_shift: the same of the background.
    """

    shift_px: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    turn_degrees: float = 0.0
    color_shift: Rgb = (0, 0, 0)
    background_shift: Rgb = (0, 0, 0)


EXACT = Variation()


def random_variation(generator: np.random.Generator) -> Variation:
    """A slight variation: a few pixels, degrees and shades."""
    dx, dy = generator.uniform(-_JITTER_PX, _JITTER_PX, 2)
    color, background = generator.integers(-_JITTER_COLOR, _JITTER_COLOR + 1, (2, 3))
    return Variation(
        shift_px=(float(dx), float(dy)),
        scale=float(generator.uniform(1 - _JITTER_SIZE, 1 + _JITTER_SIZE)),
        turn_degrees=float(generator.uniform(-_JITTER_DEGREES, _JITTER_DEGREES)),
        color_shift=(int(color[0]), int(color[1]), int(color[2])),
        background_shift=(int(background[0]), int(background[1]), int(background[2])),
    )


def draw(scene: Scene, variation: Variation = EXACT) -> Picture:
    """The scene as a picture of 128 x 128 pixels with smooth edges."""
    left, top = CENTER_PX[scene.place]
    mask = draw_mask(
        scene.shape,
        center_px=(left + variation.shift_px[0], top + variation.shift_px[1]),
        extent_px=EXTENT_PX[scene.size] * variation.scale,
        turn_degrees=variation.turn_degrees,
    )[..., None]
    color = _shifted(COLORS[scene.color], variation.color_shift)
    background = _shifted(COLORS[scene.background], variation.background_shift)
    picture: Picture = np.rint(mask * color + (1 - mask) * background).astype(np.uint8)
    return picture


def draw_mask(
    shape: ShapeName,
    *,
    center_px: tuple[float, float],
    extent_px: float,
    turn_degrees: float = 0.0,
) -> np.ndarray:
    """Where a shape is: float64 [128, 128], 1 inside, 0 outside, between them on its edge."""
    size = PICTURE_PX * _SUPERSAMPLING
    canvas = Image.new("L", (size, size))
    left, top = (value * _SUPERSAMPLING for value in center_px)
    half = extent_px * _SUPERSAMPLING / 2
    _OUTLINES[shape](ImageDraw.Draw(canvas), left, top, half, turn_degrees)
    small = canvas.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float64) / 255


def _shifted(color: Rgb, shift: Rgb) -> np.ndarray:
    return np.clip(np.add(color, shift), 0, 255).astype(np.float64)


def _disc(draw: ImageDraw.ImageDraw, left: float, top: float, half: float, turn: float) -> None:
    del turn
    draw.ellipse((left - half, top - half, left + half, top + half), fill=255)


def _ring(draw: ImageDraw.ImageDraw, left: float, top: float, half: float, turn: float) -> None:
    _disc(draw, left, top, half, turn)
    hole = half * _RING_HOLE
    draw.ellipse((left - hole, top - hole, left + hole, top + hole), fill=0)


def _square(draw: ImageDraw.ImageDraw, left: float, top: float, half: float, turn: float) -> None:
    side = half * _SQUARE_SIDE
    corners = [(-side, -side), (side, -side), (side, side), (-side, side)]
    draw.polygon(_turned(corners, left, top, turn), fill=255)


def _triangle(draw: ImageDraw.ImageDraw, left: float, top: float, half: float, turn: float) -> None:
    radius = 2 * half * _TRIANGLE_RADIUS
    directions = [radians(angle) for angle in (-90, 30, 150)]
    corners = [(radius * cos(angle), radius * sin(angle)) for angle in directions]
    draw.polygon(_turned(corners, left, top, turn), fill=255)


def _turned(
    corners: list[tuple[float, float]], left: float, top: float, degrees: float
) -> list[tuple[float, float]]:
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return [(left + x * c - y * s, top + x * s + y * c) for x, y in corners]


_OUTLINES: Mapping[ShapeName, Outline] = {
    "circle": _disc,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
}
