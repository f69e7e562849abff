"""A picture and its mask from files, as inpainting takes them, and the way back."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from triptych.errors import TensorMismatchError, UsageError
from triptych.types import Array, ImageFloats, ImageMask, ImagePixels
from triptych.workflows.image_file import (
    check_size_px,
    image_from_pixels,
    read_pixels,
    resized,
)
from triptych.workflows.mask_crop import PasteBack, crop_region, cropped

WHITE = 128
"""The lowest grey level that is repainted: the half of 255, rounded up."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class InpaintFiles:
    """A picture, and what of it is to be repainted.

    Attributes:
        image: in -1 to 1, [1, 3, height_px, width_px].
        mask: 1 where the picture is repainted and 0 where it is kept, float32
            [1, 1, height_px, width_px].
        paste_back: the picture that both were cut from; None where they are the whole of it.
    """

    image: ImageFloats
    mask: ImageMask
    paste_back: PasteBack | None

    def pasted_back(self, pixels: ImagePixels) -> Array:
        """Repainted pictures at the original's size, each in its original.

        Without a crop they are given back as they are: at the size they were made in, and made
        anew by the VAE outside the mask too. So does diffusers.

        Args:
            pixels: pictures made from `image` and `mask`, of their size.

        Returns:
            uint8 [batch, height_px, width_px, 3].

        Raises:
            TensorMismatchError: the pictures have another size.

        Source: diffusers 0.39 pipeline_stable_diffusion_xl_inpaint.py, the end of __call__.
        """
        if pixels.shape[1:3] != self.image.shape[2:]:
            raise TensorMismatchError(
                component="inpainting",
                tensor="pixels",
                actual=f"{list(pixels.shape)}",
                expected=f"[batch, {self.image.shape[2]}, {self.image.shape[3]}, 3]",
            )
        if self.paste_back is None:
            return pixels
        return np.stack([self.paste_back.pasted(picture) for picture in pixels])


def read_inpaint_files(
    image: Path,
    mask: Path,
    *,
    size_px: tuple[int, int] | None,
    scale: int,
    padding_mask_crop: int | None,
) -> InpaintFiles:
    """A picture and its mask, whole or the part around the mask.

    Args:
        image: a file that Pillow reads; transparency is dropped.
        mask: another of the same height and width, read the same way and made grey. White is
            repainted, black is kept; the border is the half, after resizing.
        size_px: height and width of what is made. None keeps the picture's own, cut down to a
            multiple of `scale` by resizing; a part around the mask has no size of its own.
        scale: image pixels for one latent cell.
        padding_mask_crop: pixels to keep around the mask when only the part around it is made;
            None makes the whole picture. Here all that is not quite black counts as mask.

    Raises:
        UsageError: a file is not there or not a picture, the two differ in size, the mask has
            nothing to repaint, or the numbers make no sense.

    Source: diffusers 0.39 image_processor.py, VaeImageProcessor.preprocess, with the settings of
    image_processor and mask_processor in StableDiffusionXLInpaintPipeline.
    """
    picture, painted = read_pixels(image, name="image"), read_pixels(mask, name="mask")
    if painted.shape != picture.shape:
        raise UsageError(
            f"mask {mask}: got {_size(painted)}, want {_size(picture)}, as the image {image}. "
            "Paint the mask over the picture itself, or resize it."
        )
    levels = _grey(painted)
    if not levels.any():
        raise _nothing_to_repaint(mask, levels, painted.shape)
    _check_crop(padding_mask_crop, size_px=size_px)
    size_px = check_size_px(picture, size_px=size_px, scale=scale, where=f"image {image}")
    if padding_mask_crop is None:
        paste_back = None
        part, painted = resized(picture, size_px=size_px), resized(painted, size_px=size_px)
    else:
        box = crop_region(levels, size_px=size_px, padding_px=padding_mask_crop)
        paste_back = PasteBack(original=picture, levels=levels, box=box)
        part = cropped(picture, box=box, size_px=size_px)
        painted = cropped(painted, box=box, size_px=size_px)
    repainted = (_grey(painted) >= WHITE).astype(np.float32)[np.newaxis, np.newaxis]
    if not repainted.any():
        raise _nothing_to_repaint(mask, levels, size_px)
    return InpaintFiles(image=image_from_pixels(part), mask=repainted, paste_back=paste_back)


def _grey(pixels: Array) -> Array:
    """Red, green and blue as one level, uint8 [height_px, width_px]."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))


def _check_crop(padding_mask_crop: int | None, *, size_px: tuple[int, int] | None) -> None:
    """Refuse a part around the mask that has no size, or less than nothing around it.

    Raises:
        UsageError: as said.
    """
    if padding_mask_crop is None:
        return
    if padding_mask_crop < 0:
        raise UsageError(f"padding_mask_crop: got {padding_mask_crop}, want 0 or more pixels.")
    if size_px is None:
        raise UsageError(
            f"padding_mask_crop: got {padding_mask_crop} and no size_px, want both. "
            "Give the size that the model was trained at."
        )


def _nothing_to_repaint(mask: Path, levels: Array, size_px: tuple[int, ...]) -> UsageError:
    return UsageError(
        f"mask {mask}: got nothing to repaint in {size_px[0]} x {size_px[1]} px, from grey levels "
        f"{levels.min()} to {levels.max()}; want {WHITE} to 255 where the picture is to change. "
        "Paint that part white, and large enough; transparency does not count."
    )


def _size(pixels: Array) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]} px"
