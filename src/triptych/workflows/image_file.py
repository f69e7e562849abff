"""Pictures to start from: files of any size as what the VAE encoder takes."""

from pathlib import Path

import numpy as np

from triptych.errors import UsageError
from triptych.types import ImageFloats


def read_image(path: Path, *, size_px: tuple[int, int] | None, scale: int) -> ImageFloats:
    """A picture in -1 to 1, [1, 3, height_px, width_px].

    Args:
        path: a file that Pillow reads; transparency is dropped.
        size_px: height and width to resize to; None keeps its own, cut down to a multiple of
            `scale` by resizing.
        scale: image pixels for one latent cell.

    Raises:
        UsageError: the file is not there, or not a picture.

    Source: diffusers 0.39 image_processor.py, VaeImageProcessor.preprocess, Lanczos by default.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"image {path}: got {error}, want a picture.") from error
    width_px, height_px = picture.size
    height_px, width_px = size_px or (height_px - height_px % scale, width_px - width_px % scale)
    if height_px < scale or width_px < scale:
        raise UsageError(f"image {path}: got {picture.size}, want at least {scale} px an edge.")
    resized = picture.resize((width_px, height_px), resample=Image.Resampling.LANCZOS)
    pixels = np.asarray(resized, np.float32).transpose(2, 0, 1)[np.newaxis] / np.float32(255)
    image: ImageFloats = np.ascontiguousarray(pixels * 2 - 1)
    return image
