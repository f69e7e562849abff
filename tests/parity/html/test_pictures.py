"""Differences of pictures: measured in levels, amplified for the eye, none of them lost."""

import base64
import io
import re
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from triptych.parity.html.pictures import (
    MAX_AMPLIFICATION,
    MAX_SIDE_PX,
    amplification,
    picture_difference,
    picture_section,
)
from triptych.types import Array, ImagePixels


def grey(level: int, *, size_px: int = 8) -> ImagePixels:
    return np.full((1, size_px, size_px, 3), level, np.uint8)


def images(section: str) -> list[Array]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', section)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_a_difference_does_not_wrap_around() -> None:
    actual, expected = grey(0), grey(0)
    actual[0, 1, 2] = (1, 0, 255)
    expected[0, 1, 2] = (0, 1, 0)
    for found in (picture_difference(actual, expected), picture_difference(expected, actual)):
        assert found is not None
        assert found.largest == 255
        assert list(found.levels[1, 2]) == [1, 1, 255]
        assert found.mean == pytest.approx(257 / (8 * 8 * 3))


def test_pictures_of_two_sizes_are_not_compared() -> None:
    assert picture_difference(grey(0), grey(0, size_px=16)) is None
    section = picture_section({"reference": {1: grey(0)}, "x": {1: grey(0, size_px=16)}})
    assert "of another size than the reference" in section


@pytest.mark.parametrize(
    ("largest", "factor"), [(0, 32), (1, 32), (7, 32), (8, 31), (70, 3), (128, 1), (255, 1)]
)
def test_the_largest_difference_fills_the_range_but_rounding_stays_dark(
    largest: int, factor: int
) -> None:
    assert amplification(largest) == factor
    assert largest * amplification(largest) <= 255
    assert amplification(largest) <= MAX_AMPLIFICATION


def test_one_factor_for_all_steps_and_the_true_size_in_words() -> None:
    reference = {1: grey(100), 2: grey(100)}
    section = picture_section({"reference": reference, "x": {1: grey(102), 2: grey(60)}})
    assert "difference &times; 6: at most 2 of 255 levels, mean 2" in section
    assert "difference &times; 6: at most 40 of 255 levels, mean 40" in section
    levels = [int(found.max()) for found in images(section)]
    assert levels == [100, 102, 12, 100, 60, 240]


def test_equal_pictures_are_said_to_be_equal() -> None:
    section = picture_section({"reference": {1: grey(9)}, "x": {1: grey(9)}})
    assert "no difference: all pixels are equal" in section


def test_a_large_picture_shrinks_and_keeps_its_largest_difference() -> None:
    size_px = 2 * MAX_SIDE_PX + 1
    actual, expected = grey(50, size_px=size_px), grey(50, size_px=size_px)
    actual[0, -1, -1, 1] = 53  # in the last row and column, which is no whole block
    section = picture_section({"reference": {1: expected}, "x": {1: actual}})
    assert "at most 3 of 255 levels" in section
    assert "Shown at 1/3 of their size; of 3 by 3 pixels the largest" in section
    *_, difference = images(section)
    assert difference.shape == (size_px // 3 + 1, size_px // 3 + 1, 3)
    assert int(difference.max()) == 3 * MAX_AMPLIFICATION


def test_a_step_that_somebody_lacks_is_said_to_be_missing() -> None:
    pictures: Mapping[str, Mapping[int, ImagePixels]] = {
        "reference": {1: grey(1), 2: grey(2)},
        "x": {2: grey(3)},
    }
    section = picture_section(pictures)
    first, second = section.split('data-step="2"')
    assert "no picture" in first
    assert "no picture" not in second


def test_without_pictures_there_is_no_section() -> None:
    assert picture_section({}) == ""
    assert picture_section({"reference": {}, "x": {}}) == ""


def test_names_are_text() -> None:
    section = picture_section({"<i>": {1: grey(1)}, "<b>": {1: grey(1)}})
    assert "<i>" not in section
    assert "<b>" not in section
