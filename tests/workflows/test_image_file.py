"""Pictures to start from."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image

from triptych.errors import UsageError
from triptych.types import Array
from triptych.workflows.image_file import read_image, read_pixels


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(random.integers(0, 256, (75, 110, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("size_px", [None, (64, 128)])
def test_as_diffusers_reads_it(size_px: tuple[int, int] | None, picture: Path) -> None:
    height, width = size_px or (None, None)
    with Image.open(picture) as opened:
        expected = VaeImageProcessor(vae_scale_factor=8).preprocess(
            opened.convert("RGB"), height=height, width=width
        )
    found = read_image(picture, size_px=size_px, scale=8)
    assert found.shape == ((1, 3, 72, 104) if size_px is None else (1, 3, 64, 128))
    np.testing.assert_array_equal(found, expected.numpy(), strict=True)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(path)
    assert read_image(path, size_px=None, scale=8)[0, :, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_side_that_is_up(orientation: int, tmp_path: Path) -> None:
    """A telephone held upright writes a lying picture and a note."""
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    expected = np.asarray(load_image(str(path)))
    assert expected.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    np.testing.assert_array_equal(read_pixels(path, name="image"), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_as_diffusers_loads_them(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.tiff" if mode in {"CMYK", "YCbCr"} else tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    Image.fromarray(pixels).convert("RGB" if mode != "RGBA" else mode).convert(mode).save(path)
    with Image.open(path) as opened:
        assert opened.mode == mode
    expected = np.asarray(load_image(str(path)))
    np.testing.assert_array_equal(read_pixels(path, name="image"), expected)


def test_a_transparent_palette(tmp_path: Path) -> None:
    """Pillow warns of it on the way to RGB, and here a warning is an error."""
    path = tmp_path / "palette.png"
    picture = Image.new("P", (16, 16))
    picture.putpalette([0, 0, 0, 255, 128, 0, 9, 9, 9])
    picture.putpixel((1, 0), 1)
    picture.save(path, transparency=bytes([128, 0, 255]))
    pixels = read_pixels(path, name="image")
    assert pixels[0, :2].tolist() == [[0, 0, 0], [255, 128, 0]]


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits(suffix: str, order: str, tmp_path: Path) -> None:
    """Pillow's own conversion makes 256 and all above it white."""
    levels = np.array([[0, 255, 256, 32767, 32768, 65535]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 6 1 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels.astype(order)).save(path)
    pixels = read_pixels(path, name="image")
    assert pixels.dtype == np.uint8
    for channel in range(3):
        assert pixels[0, :, channel].tolist() == [0, 0, 1, 127, 128, 255]


@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, 65536]], np.int32),
        np.array([[-1, 0]], np.int32),
        np.array([[0, 0.5]], np.float32),
    ],
)
def test_deeper_than_sixteen_bits(levels: Array, tmp_path: Path) -> None:
    path = tmp_path / "deep.tiff"
    Image.fromarray(levels).save(path)
    with pytest.raises(UsageError, match=r"deep\.tiff: got (int32|float32).*want 8 or 16 bits"):
        read_pixels(path, name="image")


def test_what_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("no picture")
    with pytest.raises(UsageError, match="want a picture"):
        read_image(path, size_px=None, scale=8)
    with pytest.raises(UsageError, match="want a picture"):
        read_image(tmp_path / "absent.png", size_px=None, scale=8)


def test_less_than_one_cell(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", (7, 16)).save(path)
    with pytest.raises(UsageError, match="got 16 x 7 px, want at least 8 px"):
        read_image(path, size_px=None, scale=8)
    with pytest.raises(UsageError, match="got 64 x 0 px, want at least 8 px"):
        read_image(path, size_px=(64, 0), scale=8)


def test_broken_or_too_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(UsageError, match="want a picture"):
        read_pixels(path, name="image")
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match=r"decompression bomb.*want a picture"):
        read_pixels(path, name="image")
