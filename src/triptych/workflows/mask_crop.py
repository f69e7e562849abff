"""The part of a picture around a mask: where it lies, enlarged, and put back when repainted."""

from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from triptych.errors import UsageError
from triptych.types import Array

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom lie outside. Pillow's order."""


def crop_region(levels: Array, *, size_px: tuple[int, int], padding_px: int) -> Box:
    """The rectangle around everything that is not black, with the aspect of `size_px`.

    Widened evenly to that aspect, moved into the picture where it would stick out, and cut where
    the picture is too small for it. Its aspect is then another; else it is less than a pixel off.

    Args:
        levels: grey levels [height_px, width_px], not all 0. Dark grey counts like white.
        size_px: height and width that the part is enlarged to.
        padding_px: pixels around the mask, before the rectangle is widened.

    Source: diffusers 0.39 image_processor.py, VaeImageProcessor.get_crop_region.
    """
    left, right = _padded_extent(levels.max(axis=0), padding_px)
    top, bottom = _padded_extent(levels.max(axis=1), padding_px)
    aspect = size_px[1] / size_px[0]
    if (right - left) / (bottom - top) > aspect:
        length = (right - left) / aspect
        top, bottom = _widened(top, bottom, length=length, limit=levels.shape[0])
    else:
        length = (bottom - top) * aspect
        left, right = _widened(left, right, length=length, limit=levels.shape[1])
    return left, top, right, bottom


def _padded_extent(brightest: Array, padding_px: int) -> tuple[int, int]:
    """From the first to behind the last row or column that is not black, padded in the picture."""
    places = np.flatnonzero(brightest)
    start, stop = int(places[0]) - padding_px, int(places[-1]) + 1 + padding_px
    return max(start, 0), min(stop, len(brightest))


def _widened(start: int, stop: int, *, length: float, limit: int) -> tuple[int, int]:
    """The stretch grown to `length`, half on either side, and kept within 0 to `limit`."""
    more = int(length - (stop - start))
    start, stop = start - more // 2, stop + more - more // 2
    beyond = max(stop - limit, 0)
    start, stop = start - beyond, stop - beyond
    before = max(-start, 0)
    return start + before, min(stop + before, limit)


def cropped(pixels: Array, *, box: Box, size_px: tuple[int, int]) -> Array:
    """The part in the box, resized to lie inside `size_px`: uint8 [height_px, width_px, 3].

    Where the aspects differ it is centred, and its outermost rows or columns are drawn out over
    the rest.

    Raises:
        UsageError: the part is so narrow that nothing of it would be left in `size_px`.

    Source: diffusers 0.39 image_processor.py, VaeImageProcessor.preprocess, resize_mode "fill".
    """
    from PIL import Image

    left, top, right, bottom = box
    height_px, width_px = size_px
    part_px = (bottom - top, right - left)
    inner_height_px, inner_width_px = _same_aspect(part_px, size_px, cover=False)
    if inner_height_px == 0 or inner_width_px == 0:
        raise UsageError(
            f"mask crop: got {part_px[0]} x {part_px[1]} px of the picture, want a part that is "
            f"not lost in {height_px} x {width_px} px. Inpaint without padding_mask_crop."
        )
    part = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    part = part.resize((inner_width_px, inner_height_px), Image.Resampling.LANCZOS)
    x, y = width_px // 2 - inner_width_px // 2, height_px // 2 - inner_height_px // 2
    canvas = Image.new("RGB", (width_px, height_px))
    canvas.paste(part, (x, y))
    # Pillow resamples a box of no extent from the pixels on both sides of that line, by cubics:
    # not the outermost row itself, so np.pad would give other numbers than diffusers.
    for line, start in ((0, 0), (inner_height_px, y + inner_height_px)) if y > 0 else ():
        canvas.paste(part.resize((width_px, y), box=(0, line, width_px, line)), (0, start))
    for line, start in ((0, 0), (inner_width_px, x + inner_width_px)) if x > 0 else ():
        canvas.paste(part.resize((x, height_px), box=(line, 0, line, height_px)), (start, 0))
    return np.asarray(canvas)


def _same_aspect(
    source_px: tuple[int, int], target_px: tuple[int, int], *, cover: bool
) -> tuple[int, int]:
    """Height and width of the source, its aspect kept, when it just fits inside the target.

    Or, with `cover`, when the target just fits inside it.
    """
    (source_height, source_width), (height, width) = source_px, target_px
    wider_by = source_width * height - width * source_height
    if wider_by < 0 if cover else wider_by > 0:
        return source_height * width // source_width, width
    return height, source_width * height // source_height


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PasteBack:
    """The picture that a part was cut from.

    Attributes:
        original: uint8 [height_px, width_px, 3].
        levels: the mask's grey levels, uint8 [height_px, width_px]. 255 takes the new picture,
            0 keeps the original, and what lies between mixes them.
        box: where the part lay.
    """

    original: Array
    levels: Array
    box: Box

    def pasted(self, pixels: Array) -> Array:
        """The original with one repainted part in its place, uint8, of the original's size.

        Args:
            pixels: the part as it was made, uint8 [height_px, width_px, 3].

        Source: diffusers 0.39 image_processor.py, VaeImageProcessor.apply_overlay.
        """
        from PIL import Image

        original = Image.fromarray(self.original)
        # Multiplied by the mask and divided again, as in diffusers: its rounding shows in greys
        kept = Image.new("RGBa", original.size)
        kept.paste(original.convert("RGBa"), mask=Image.fromarray(255 - self.levels))
        repainted = Image.new("RGB", original.size)
        repainted.paste(Image.fromarray(self._covering(pixels)), self.box)
        layers = repainted.convert("RGBA")
        layers.alpha_composite(kept.convert("RGBA"))
        return np.asarray(layers.convert("RGB"))

    def _covering(self, pixels: Array) -> Array:
        """The part resized to cover its box, centred, and what sticks out cut off."""
        from PIL import Image

        left, top, right, bottom = self.box
        height_px, width_px = bottom - top, right - left
        outer_height_px, outer_width_px = _same_aspect(
            pixels.shape[:2], (height_px, width_px), cover=True
        )
        part = Image.fromarray(pixels)
        part = part.resize((outer_width_px, outer_height_px), Image.Resampling.LANCZOS)
        x, y = outer_width_px // 2 - width_px // 2, outer_height_px // 2 - height_px // 2
        return np.asarray(part.crop((x, y, x + width_px, y + height_px)))
