"""Pictures to start from."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from triptych.errors import UsageError
from triptych.workflows.image_file import read_image


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
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(path)
    assert read_image(path, size_px=None, scale=8)[0, :, 0, 0].tolist() == [1, -1, -1]


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
    with pytest.raises(UsageError, match="at least 8 px"):
        read_image(path, size_px=None, scale=8)
