"""The linear preview against its published numbers."""

import numpy as np
import pytest

from triptych.sampling.preview import preview_pixels
from triptych.types import Latents


def latents(*values: float) -> Latents:
    return np.array(values, np.float32).reshape(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("values", "colour"),
    [
        ((0, 0, 0, 0), (150, 140, 130)),
        ((1, 0, 0, 0), (210, 200, 190)),
        ((0, 1, 0, 0), (90, 135, 140)),
        ((0, 0, 1, 0), (175, 155, 125)),
        ((0, 0, 0, 1), (80, 90, 95)),
        ((-1, 0, 0, 0), (90, 80, 70)),
    ],
)
def test_colours_of_single_channels(
    values: tuple[float, ...], colour: tuple[int, int, int]
) -> None:
    assert preview_pixels(latents(*values))[0, 0, 0].tolist() == list(colour)


def test_what_is_too_bright_or_too_dark_is_clipped() -> None:
    assert preview_pixels(latents(10, 0, 0, 0))[0, 0, 0].tolist() == [255, 255, 255]
    assert preview_pixels(latents(-10, 0, 0, 0))[0, 0, 0].tolist() == [0, 0, 0]


def test_one_pixel_a_cell_channels_last() -> None:
    cells = np.zeros((2, 4, 3, 5), np.float32)
    cells[1, 0, 2, 4] = 1
    pixels = preview_pixels(cells)
    assert pixels.shape == (2, 3, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels[1, 2, 4].tolist() == [210, 200, 190]
    assert (pixels.reshape(-1, 3) == [150, 140, 130]).all(axis=1).sum() == 2 * 15 - 1
