"""Pictures to start from: files of any size as what the VAE encoder takes."""

from pathlib import Path

import numpy as np

from triptych.errors import UsageError
from triptych.types import Array, ImageFloats


def read_image(path: Path, *, size_px: tuple[int, int] | None, scale: int) -> ImageFloats:
    """A picture in -1 to 1, [1, 3, height_px, width_px].

    Args:
        path: a file that Pillow reads; transparency is dropped.
        size_px: height and width to resize to; None keeps its own, cut down to a multiple of
            `scale` by resizing.
        scale: image pixels for one latent cell.

    Raises:
        UsageError: the file is not there, not a picture, or smaller than one cell.

    Source: diffusers 0.39 image_processor.py, VaeImageProcessor.preprocess, Lanczos by default.
    """
    pixels = read_pixels(path, name="image")
    size_px = check_size_px(pixels, size_px=size_px, scale=scale, where=f"image {path}")
    return image_from_pixels(resized(pixels, size_px=size_px))


def read_pixels(path: Path, *, name: str) -> Array:
    """One picture in red, green and blue, uint8 [height_px, width_px, 3].

    Transparency is dropped, the first of several frames is taken, and a camera's note which side
    is up is obeyed. Of 16 bits the upper eight are kept: Pillow's own conversion would make
    everything above 255 white.

    Args:
        path: a file that Pillow reads.
        name: what the file is, for messages.

    Raises:
        UsageError: the file is not there, not a picture, or deeper than 16 bits.

    Source: diffusers 0.39 utils/loading_utils.py, load_image; it makes 16 bits white.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode[0] in "IF":
                return _upper_eight_bits(np.asarray(picture), where=f"{name} {path}")
            if picture.mode == "P":  # Pillow warns of a transparent palette on its way to RGB
                picture = picture.convert("RGBA")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{name} {path}: got {error}, want a picture.") from error


def _upper_eight_bits(levels: Array, *, where: str) -> Array:
    """Grey levels of 16 bits as red, green and blue of eight."""
    lowest, highest = levels.min(), levels.max()
    if levels.dtype.kind == "f" or lowest < 0 or highest > 0xFFFF:
        raise UsageError(
            f"{where}: got {levels.dtype} pixels from {lowest} to {highest}, want 8 or 16 bits. "
            "Save it as an 8-bit PNG."
        )
    return np.repeat((levels >> 8).astype(np.uint8)[..., np.newaxis], 3, axis=-1)


def check_size_px(
    pixels: Array, *, size_px: tuple[int, int] | None, scale: int, where: str
) -> tuple[int, int]:
    """Height and width to resize to: `size_px`, or the picture's own cut to whole cells.

    Raises:
        UsageError: that is less than one cell.
    """
    own_height_px, own_width_px = pixels.shape[:2]
    height_px, width_px = size_px or (
        own_height_px - own_height_px % scale,
        own_width_px - own_width_px % scale,
    )
    if height_px < scale or width_px < scale:
        got = f"{height_px} x {width_px}" if size_px else f"{own_height_px} x {own_width_px}"
        raise UsageError(f"{where}: got {got} px, want at least {scale} px an edge.")
    return height_px, width_px


def resized(pixels: Array, *, size_px: tuple[int, int]) -> Array:
    """One uint8 picture at another height and width, by Lanczos; its aspect is not kept."""
    from PIL import Image

    height_px, width_px = size_px
    resample = Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width_px, height_px), resample=resample))


def image_from_pixels(pixels: Array) -> ImageFloats:
    """One uint8 picture [height_px, width_px, 3] as a batch of one in -1 to 1."""
    unit = pixels.astype(np.float32).transpose(2, 0, 1)[np.newaxis] / np.float32(255)
    image: ImageFloats = np.ascontiguousarray(unit * 2 - 1)
    return image
