"""How far one picture is from another, as people's eyes and their papers count it.

On floats, before anything is rounded to 8 bits or clipped. NaN wherever either is not finite: see
`triptych.parity.metrics` for the promises that hold here too.
"""

import math

import numpy as np

from triptych.parity.metrics import check_comparable, rms
from triptych.types import Array

SPAN = 2.0
"""From black to white of what SDXL's VAE decodes, -1 to 1."""

_WINDOW_PX = 11
_SIGMA_PX = 1.5
_K1, _K2 = 0.01, 0.03


def image_psnr_db(actual: Array, expected: Array) -> float:
    """Peak signal-to-noise ratio in dB; higher is closer, +inf when equal.

    20·log10(2 / rms(actual - expected)): the peak is the span of a picture's values, whatever is in
    this one. NaN when anything is not finite.

    Raises:
        TensorMismatchError: the pictures are not comparable. Nothing is broadcast.
    """
    check_comparable(actual, expected, component="image_psnr_db", tensor="actual")
    with np.errstate(invalid="ignore"):
        error = rms(actual.astype(np.float64) - expected.astype(np.float64))
    if math.isnan(error):
        return math.nan
    return math.inf if error == 0 else 20 * math.log10(SPAN / error)


def ssim(actual: Array, expected: Array) -> float:
    """Structural similarity of pictures [..., height, width], at most 1, which is equal.

    Luminance, contrast and structure in a Gaussian window of 11 pixels (sigma 1.5), for each
    colour, averaged over all windows that lie inside the picture. NaN when anything is not finite,
    and for pictures smaller than the window.

    Raises:
        TensorMismatchError: the pictures are not comparable. Nothing is broadcast.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, doi:10.1109/TIP.2003.819861, equation 13 with
    K1 = 0.01, K2 = 0.03; L is the span of a picture's values, 2.
    """
    check_comparable(actual, expected, component="ssim", tensor="actual")
    first, second = actual.astype(np.float64), expected.astype(np.float64)
    is_finite = bool(np.isfinite(first).all() and np.isfinite(second).all())
    if not is_finite or min(first.shape[-2:]) < _WINDOW_PX:
        return math.nan
    mean_1, mean_2 = _windowed(first), _windowed(second)
    variance_1 = _windowed(first * first) - mean_1 * mean_1
    variance_2 = _windowed(second * second) - mean_2 * mean_2
    covariance = _windowed(first * second) - mean_1 * mean_2
    stable_1, stable_2 = (_K1 * SPAN) ** 2, (_K2 * SPAN) ** 2
    similarity = ((2 * mean_1 * mean_2 + stable_1) * (2 * covariance + stable_2)) / (
        (mean_1**2 + mean_2**2 + stable_1) * (variance_1 + variance_2 + stable_2)
    )
    return float(similarity.mean())


def _windowed(image: Array) -> Array:
    """The Gaussian mean around every pixel whose window lies inside the picture."""
    offsets = np.arange(_WINDOW_PX) - _WINDOW_PX // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA_PX**2))
    weights /= weights.sum()
    for axis in (-2, -1):
        windows = np.lib.stride_tricks.sliding_window_view(image, _WINDOW_PX, axis=axis)
        image = windows @ weights
    return image
