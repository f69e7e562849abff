import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from triptych.errors import TensorMismatchError, UsageError
from triptych.types import Array
from triptych.workflows.generation.names import PictureFormat
from triptych.workflows.generation.pictures import encode_picture


def test_png_keeps_every_pixel(pixels: Array) -> None:
    with Image.open(io.BytesIO(encode_picture(pixels, picture_format="png"))) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), pixels)


def test_jpeg_is_of_high_quality_with_all_colours(pixels: Array) -> None:
    """Pillow's own quality is 75, with a quarter of the colours."""
    with Image.open(io.BytesIO(encode_picture(pixels, picture_format="jpg"))) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (16, 24)
        assert JpegImagePlugin.get_sampling(picture) == 0
        assert tables(picture) == tables_of_quality(95)
        assert tables(picture) != tables_of_quality(75)
    content = encode_picture(pixels, picture_format="jpg", quality=60)
    with Image.open(io.BytesIO(content)) as picture:
        assert tables(picture) == tables_of_quality(60)


def tables(picture: Image.Image) -> dict[int, list[int]]:
    assert isinstance(picture, JpegImagePlugin.JpegImageFile)
    return {number: list(table) for number, table in picture.quantization.items()}


def tables_of_quality(quality: int) -> dict[int, list[int]]:
    """By the standard's formula, from the standard's tables as Pillow writes quality 50."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=50)
    with Image.open(stream) as picture:
        standard = tables(picture)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return {
        number: [min(max((value * scale + 50) // 100, 1), 255) for value in table]
        for number, table in standard.items()
    }


@pytest.mark.parametrize("picture_format", ["jpg", "png"])
def test_the_same_pixels_give_the_same_bytes(pixels: Array, picture_format: PictureFormat) -> None:
    first = encode_picture(pixels, picture_format=picture_format)
    strided = np.asfortranarray(pixels)
    assert encode_picture(strided, picture_format=picture_format) == first
    assert b"Exif" not in first
    assert b"tIME" not in first


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8, 3), dtype=np.float32),
        np.zeros((3, 8, 8), dtype=np.uint8),
        np.zeros((1, 8, 8, 3), dtype=np.uint8),
        np.zeros((8, 8), dtype=np.uint8),
        np.zeros((0, 8, 3), dtype=np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(wrong: Array) -> None:
    with pytest.raises(TensorMismatchError, match=r"want uint8 \[height_px, width_px, 3\]"):
        encode_picture(wrong, picture_format="png")


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_a_quality_that_there_is_not_is_refused(quality: int, pixels: Array) -> None:
    with pytest.raises(UsageError, match="want 1 to 100"):
        encode_picture(pixels, picture_format="jpg", quality=quality)
