"""From latents to pixels: the factor before the decoder, and the rounding after it."""

from dataclasses import replace
from typing import final

import numpy as np
import pytest

from triptych.bundle.bundle import Bundle
from triptych.sampling.decode import decode_latents, pixels_from_image
from triptych.types import Array, ImageFloats, Latents, TensorMap


@final
class ShowingDecoder:
    """Shows the first three latent channels as they come, eight times enlarged."""

    def __init__(self) -> None:
        self.feeds: list[TensorMap] = []

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.feeds.append(feed)
        enlarged = feed["latents"][:, :3].repeat(8, axis=2).repeat(8, axis=3)
        return {"image": enlarged}


def gaussian(rows: int) -> Latents:
    return np.random.default_rng(0).standard_normal((rows, 4, 3, 2)).astype(np.float32)


def image(value: float) -> ImageFloats:
    return np.full((1, 3, 2, 2), value, np.float32)


def test_latents_are_divided_by_the_scaling_factor(checkpoint_bundle: Bundle) -> None:
    config = replace(checkpoint_bundle.config, scaling_factor=0.13025)
    decoder, latents = ShowingDecoder(), gaussian(1)

    decoded = decode_latents(decoder, latents, config=config)

    np.testing.assert_allclose(decoder.feeds[0]["latents"], latents / 0.13025, rtol=1e-6)
    assert decoder.feeds[0]["latents"].dtype == np.float32
    assert decoded.shape == (1, 3, 24, 16)


def test_latents_are_denormalised_where_the_config_says_how(checkpoint_bundle: Bundle) -> None:
    mean, std = (1.0, -2.0, 3.0, 0.5), (2.0, 3.0, 4.0, 5.0)
    config = replace(
        checkpoint_bundle.config, scaling_factor=0.5, latents_mean=mean, latents_std=std
    )
    decoder, latents = ShowingDecoder(), gaussian(1)

    decode_latents(decoder, latents, config=config)

    for channel in range(4):
        np.testing.assert_allclose(
            decoder.feeds[0]["latents"][:, channel],
            latents[:, channel] * std[channel] / 0.5 + mean[channel],
            rtol=1e-5,
        )


def test_pictures_are_decoded_one_at_a_time_in_order(checkpoint_bundle: Bundle) -> None:
    decoder, latents = ShowingDecoder(), gaussian(3)

    decoded = decode_latents(decoder, latents, config=checkpoint_bundle.config)

    assert [feed["latents"].shape[0] for feed in decoder.feeds] == [1, 1, 1]
    expected = latents[:, :3] / np.float32(checkpoint_bundle.config.scaling_factor)
    np.testing.assert_array_equal(decoded[:, :, ::8, ::8], expected)


@pytest.mark.parametrize(
    ("value", "pixel"),
    [
        (-1.0, 0),
        (1.0, 255),
        (0.0, 128),  # 127.5 goes to the even neighbour
        (-5.0, 0),
        (5.0, 255),
        (2 * 10.4 / 255 - 1, 10),
        (2 * 10.6 / 255 - 1, 11),  # rounded, not cut
    ],
)
def test_pixels_are_clipped_and_rounded(value: float, pixel: int) -> None:
    pixels = pixels_from_image(image(value))
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[[pixel] * 3] * 2] * 2]


def test_every_pixel_value_survives_the_way_there_and_back() -> None:
    values = np.arange(256, dtype=np.float32) / 255 * 2 - 1
    floats = np.broadcast_to(values, (1, 3, 1, 256)).copy()
    np.testing.assert_array_equal(pixels_from_image(floats)[0, 0, :, 0], np.arange(256))


def test_pixels_are_channels_last() -> None:
    floats = np.stack([np.full((2, 5), level, np.float32) for level in (-1, 0.5, 1)])[None]
    pixels = pixels_from_image(floats)
    assert pixels.shape == (1, 2, 5, 3)
    assert pixels[0, 1, 4].tolist() == [0, 191, 255]
