"""Pictures as the bytes of their files: the same pixels give the same bytes."""

import io

import numpy as np

from triptych.errors import TensorMismatchError, UsageError
from triptych.types import Array
from triptych.workflows.generation.names import PictureFormat

DEFAULT_QUALITY = 95
"""Of JPEG, 1 to 100. Pillow's own is 75, which shows in pictures that are compared."""


def check_quality(quality: int) -> int:
    """The same JPEG quality.

    Raises:
        UsageError: there is no such quality.
    """
    if not 1 <= quality <= 100:
        raise UsageError(
            f"quality: got {quality}, want 1 to 100. {DEFAULT_QUALITY} is the default."
        )
    return quality


def encode_picture(
    pixels: Array, *, picture_format: PictureFormat, quality: int = DEFAULT_QUALITY
) -> bytes:
    """One picture as a file's content, without time or other notes.

    Args:
        pixels: uint8 [height_px, width_px, 3].
        picture_format: jpg keeps the colours at full resolution (4:4:4); png keeps every pixel.
        quality: of jpg, 1 to 100.

    Raises:
        TensorMismatchError: pixels of another type or shape.
        UsageError: there is no such quality.
    """
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise TensorMismatchError(
            component="picture",
            tensor="pixels",
            actual=f"{pixels.dtype} {list(pixels.shape)}",
            expected="uint8 [height_px, width_px, 3]",
        )
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    stream = io.BytesIO()
    if picture_format == "jpg":
        picture.save(stream, "JPEG", quality=check_quality(quality), subsampling="4:4:4")
    else:
        picture.save(stream, "PNG", compress_level=6)
    return stream.getvalue()
