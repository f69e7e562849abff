"""PSNR and SSIM of pictures, on floats."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from triptych.errors import TensorMismatchError
from triptych.parity.image_metrics import image_psnr_db, ssim
from triptych.types import Array

SEEDS = st.integers(min_value=0, max_value=2**31)


def picture(seed: int, *, size: tuple[int, int] = (20, 24)) -> Array:
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (1, 3, *size)).astype(np.float32)


def scipy_ssim(actual: Array, expected: Array) -> float:
    """The paper's formula with SciPy's Gaussian, cut to 11 pixels, away from the border."""

    def mean(values: Array) -> Array:
        blurred: Array = gaussian_filter(values, sigma=(0, 0, 1.5, 1.5), truncate=5 / 1.5)
        return blurred[..., 5:-5, 5:-5]

    x, y = actual.astype(np.float64), expected.astype(np.float64)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    similar = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(similar.mean())


@given(first=SEEDS, second=SEEDS)
def test_ssim_is_the_paper_s(first: int, second: int) -> None:
    actual, expected = picture(first), picture(second)
    assert ssim(actual, expected) == pytest.approx(scipy_ssim(actual, expected), abs=1e-12)


@given(seed=SEEDS)
def test_equal_pictures(seed: int) -> None:
    one = picture(seed)
    assert ssim(one, one) == pytest.approx(1, abs=1e-12)
    assert image_psnr_db(one, one) == math.inf


@given(first=SEEDS, second=SEEDS)
def test_ssim_and_psnr_do_not_care_which_comes_first(first: int, second: int) -> None:
    one, other = picture(first), picture(second)
    assert ssim(one, other) == pytest.approx(ssim(other, one), abs=1e-12)
    assert image_psnr_db(one, other) == image_psnr_db(other, one)


def test_psnr_goes_by_the_span_and_not_by_what_is_in_the_picture() -> None:
    dark = np.full((1, 3, 12, 12), -0.9, np.float32)
    assert image_psnr_db(dark + np.float32(0.2), dark) == pytest.approx(20, abs=1e-4)
    assert image_psnr_db(dark, dark + np.float32(0.02)) == pytest.approx(40, abs=1e-3)


def test_more_noise_is_further() -> None:
    expected = picture(0)
    noise = picture(1)
    levels = [0.0, 1e-3, 1e-2, 0.1, 0.5]
    found = [ssim(expected + np.float32(level) * noise, expected) for level in levels]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_no_number(value: float, side: int) -> None:
    pair = [picture(0), picture(0)]
    pair[side][0, 1, 5, 5] = value
    assert math.isnan(ssim(*pair))
    assert math.isnan(image_psnr_db(*pair))


def test_nothing_is_broadcast() -> None:
    with pytest.raises(TensorMismatchError):
        ssim(picture(0), picture(0)[:, :1])
    with pytest.raises(TensorMismatchError):
        image_psnr_db(picture(0), picture(0)[..., :-1])


def test_pictures_smaller_than_the_window_have_no_ssim() -> None:
    small = picture(0, size=(10, 30))
    assert math.isnan(ssim(small, small))
