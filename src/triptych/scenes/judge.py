"""What a picture shows, read by plain image processing; no network is asked.

The background is what most of the border is. The shape is what differs from it; its colour is the
median of its inner pixels, its place where its middle is, and its kind and size those of the shape
that covers it best, drawn with the same middle and the same area. What covers nothing well is no
shape of ours, and no part of it counts as right.
"""

from dataclasses import dataclass
from math import dist
from typing import final

import numpy as np
from PIL import Image, ImageFilter

from triptych.scenes.drawing import CENTER_PX, EXTENT_PX, PICTURE_PX, UNIT_AREAS, draw_mask
from triptych.scenes.scene import COLORS, ColorName, Place, Scene, ShapeName, SizeName
from triptych.types import Array, Picture

_BORDER_PX = 3
_LEAST_CONTRAST = 0.5
"""Of the way from the background's colour to the shape's, from which on a pixel is the shape's."""

_LEAST_DIFFERENCE = 40.0
"""Of 441, in red, green and blue together: below it there is no shape. The two colours of COLORS
that are most alike, red and orange, are 101 apart."""

_LEAST_OVERLAP = 0.7
"""Intersection over union with the best shape, below which it is none of ours. Drawn scenes of any
variation reach 0.89."""

_LEAST_AREA_PX = 60


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read from a picture.

    Attributes:
        scene: what it shows; None where it shows no shape of ours, or several.
        overlap: intersection over union of what is there with the best shape, 0 to 1.
    """

    scene: Scene | None
    overlap: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Which parts of a wish a picture fulfils."""

    shape: bool
    color: bool
    size: bool
    place: bool
    background: bool

    @property
    def is_whole(self) -> bool:
        """Whether all of it is as wished."""
        return all((self.shape, self.color, self.size, self.place, self.background))


def compare_scenes(wanted: Scene, reading: Reading) -> Agreement:
    """Which parts of `wanted` were read from a picture."""
    seen = reading.scene
    if seen is None:
        return Agreement(shape=False, color=False, size=False, place=False, background=False)
    return Agreement(
        shape=seen.shape == wanted.shape,
        color=seen.color == wanted.color,
        size=seen.size == wanted.size,
        place=seen.place == wanted.place,
        background=seen.background == wanted.background,
    )


def read_scene(picture: Picture) -> Reading:
    """What a picture shows; pictures of other sizes are read at 128 x 128 pixels."""
    image = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    pixels = np.asarray(image, np.float64)
    background = _border_color(pixels)
    mask = _shape_mask(pixels, background)
    if mask is None:
        return Reading(scene=None, overlap=0.0)
    rows, columns = np.nonzero(mask)
    middle = (float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)
    overlaps = {name: _overlap(mask, name, middle) for name in UNIT_AREAS}
    shape = max(overlaps, key=lambda name: overlaps[name])
    color = _nearest_color(np.median(pixels[_shrunk(mask)], axis=0))
    ground = _nearest_color(background)
    if overlaps[shape] < _LEAST_OVERLAP or color == ground:
        return Reading(scene=None, overlap=overlaps[shape])
    scene = Scene(
        shape=shape,
        color=color,
        size=_nearest_size(_extent(mask, shape)),
        place=_nearest_place(middle),
        background=ground,
    )
    return Reading(scene=scene, overlap=overlaps[shape])


def _border_color(pixels: Array) -> Array:
    is_border = np.ones(pixels.shape[:2], bool)
    is_border[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = False
    return np.asarray(np.median(pixels[is_border], axis=0))


def _shape_mask(pixels: Array, background: Array) -> Array | None:
    """Where the shape is; None where nothing stands out."""
    distances = np.linalg.norm(pixels - background, axis=-1)
    is_other = distances > _LEAST_DIFFERENCE
    if is_other.sum() < _LEAST_AREA_PX:
        return None
    color = np.median(pixels[distances >= np.median(distances[is_other])], axis=0)
    direction = color - background
    share = (pixels - background) @ direction / (direction @ direction)
    mask = _without_specks(share > _LEAST_CONTRAST)
    return mask if mask.sum() >= _LEAST_AREA_PX else None


def _without_specks(mask: Array) -> Array:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MedianFilter(5))) > 0


def _shrunk(mask: Array) -> Array:
    """The mask without its edge, or the mask where nothing else is left of it."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    inner = np.asarray(image.filter(ImageFilter.MinFilter(5))) > 0
    return inner if inner.any() else mask


def _overlap(mask: Array, shape: ShapeName, middle: tuple[float, float]) -> float:
    """The best of a few turns: shapes are drawn turned a little."""
    extent = _extent(mask, shape)
    best = 0.0
    for turn in (-6.0, 0.0, 6.0):
        drawn = draw_mask(shape, center_px=middle, extent_px=extent, turn_degrees=turn) > 0.5
        best = max(best, float((mask & drawn).sum() / (mask | drawn).sum()))
    return best


def _extent(mask: Array, shape: ShapeName) -> float:
    """How wide the shape is that has the mask's area."""
    return float(np.sqrt(mask.sum() / UNIT_AREAS[shape]))


def _nearest_color(color: Array) -> ColorName:
    return min(COLORS, key=lambda name: dist(COLORS[name], color))


def _nearest_size(extent_px: float) -> SizeName:
    return min(EXTENT_PX, key=lambda name: abs(EXTENT_PX[name] - extent_px))


def _nearest_place(middle: tuple[float, float]) -> Place:
    return min(CENTER_PX, key=lambda name: dist(CENTER_PX[name], middle))
