"""Classifier-free guidance: how often the U-Net runs, on what, and what becomes of it."""

from typing import final

import numpy as np
import pytest

from triptych.sampling.conditioning import Conditioning
from triptych.sampling.guidance import (
    GuidanceMode,
    classifier_free_guidance,
    is_guided,
    predict_noise,
    split_halves,
)
from triptych.types import Array, Latents, NoisePred, TensorMap

PICTURES = 2


@final
class ListeningUnet:
    """Answers each row by its own inputs, so that rows cannot be confused; remembers its feeds."""

    def __init__(self) -> None:
        self.feeds: list[TensorMap] = []

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.feeds.append(feed)
        heard = (
            feed["encoder_hidden_states"].mean(axis=(1, 2))
            + 2 * feed["text_embeds"].mean(axis=1)
            + 4 * feed["time_ids"].mean(axis=1)
            + feed["timestep"] / 1000
        )
        return {"noise_pred": feed["sample"] * heard[:, None, None, None]}


def gaussian(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conditioning(rows: int) -> Conditioning:
    return Conditioning(
        encoder_hidden_states=gaussian(rows, 7, 6, seed=1),
        text_embeds=gaussian(rows, 5, seed=2),
        time_ids=gaussian(rows, 6, seed=3),
    )


def sample() -> Latents:
    return gaussian(PICTURES, 4, 3, 5, seed=4)


def predict(
    unet: ListeningUnet, told: Conditioning, scale: float, mode: GuidanceMode = "batched"
) -> NoisePred:
    return predict_noise(
        unet, sample(), timestep=500.5, conditioning=told, guidance_scale=scale, mode=mode
    )


@pytest.mark.parametrize("mode", ["batched", "split"])
@pytest.mark.parametrize("scale", [1.0, 0.0, -3.0, 0.999])
def test_up_to_one_makes_one_conditional_call(scale: float, mode: GuidanceMode) -> None:
    unet, told = ListeningUnet(), conditioning(PICTURES)

    noise_pred = predict(unet, told, scale, mode)

    assert len(unet.feeds) == 1
    np.testing.assert_array_equal(unet.feeds[0]["sample"], sample())
    np.testing.assert_array_equal(unet.feeds[0]["text_embeds"], told.text_embeds)
    np.testing.assert_array_equal(noise_pred, ListeningUnet().run(unet.feeds[0])["noise_pred"])
    assert not is_guided(scale)


@pytest.mark.parametrize("scale", [1.0001, 5.0, 7.5, 30.0])
def test_guidance_is_its_formula_in_both_modes(scale: float) -> None:
    told = conditioning(2 * PICTURES)
    unconditional, conditional = (
        predict(ListeningUnet(), half, 1.0) for half in split_halves(told)
    )
    expected = unconditional + np.float32(scale) * (conditional - unconditional)

    batched = predict(ListeningUnet(), told, scale, "batched")
    split = predict(ListeningUnet(), told, scale, "split")

    assert is_guided(scale)
    assert batched.dtype == split.dtype == np.float32
    np.testing.assert_allclose(batched, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(split, batched)


def test_batched_is_one_call_with_the_unconditional_half_first() -> None:
    unet, told = ListeningUnet(), conditioning(2 * PICTURES)

    predict(unet, told, 5.0, "batched")

    (feed,) = unet.feeds
    np.testing.assert_array_equal(feed["sample"], np.concatenate([sample(), sample()]))
    np.testing.assert_array_equal(feed["encoder_hidden_states"], told.encoder_hidden_states)
    np.testing.assert_array_equal(feed["time_ids"], told.time_ids)


def test_split_is_two_calls_with_the_unconditional_half_first() -> None:
    unet, told = ListeningUnet(), conditioning(2 * PICTURES)

    predict(unet, told, 5.0, "split")

    assert len(unet.feeds) == 2
    for feed, rows in zip(unet.feeds, (slice(0, 2), slice(2, 4)), strict=True):
        np.testing.assert_array_equal(feed["sample"], sample())
        np.testing.assert_array_equal(
            feed["encoder_hidden_states"], told.encoder_hidden_states[rows]
        )
        np.testing.assert_array_equal(feed["text_embeds"], told.text_embeds[rows])
        np.testing.assert_array_equal(feed["time_ids"], told.time_ids[rows])


@pytest.mark.parametrize("mode", ["batched", "split"])
def test_feed_is_what_a_session_wants(mode: GuidanceMode) -> None:
    unet = ListeningUnet()
    predict(unet, conditioning(2 * PICTURES), 5.0, mode)
    for feed in unet.feeds:
        assert set(feed) == {
            "sample",
            "timestep",
            "encoder_hidden_states",
            "text_embeds",
            "time_ids",
        }
        assert all(tensor.dtype == np.float32 for tensor in feed.values())
        assert all(tensor.flags.c_contiguous for tensor in feed.values())
        assert feed["timestep"].shape == ()
        assert feed["timestep"] == 500.5


def test_halves_are_unconditional_then_conditional() -> None:
    told = conditioning(4)
    unconditional, conditional = split_halves(told)
    np.testing.assert_array_equal(unconditional.text_embeds, told.text_embeds[:2])
    np.testing.assert_array_equal(conditional.text_embeds, told.text_embeds[2:])
    np.testing.assert_array_equal(conditional.time_ids, told.time_ids[2:])


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, -2.0])
def test_the_formula_at_any_scale(scale: float) -> None:
    # Cremage's technical note: uc at 0, c at 1, and a negative scale is legal.
    random = np.random.default_rng(0)
    unconditional, conditional = random.integers(-8, 8, (2, 1, 4, 3, 3)).astype(np.float32)
    guided = classifier_free_guidance(unconditional, conditional, guidance_scale=scale)
    expected = {0.0: unconditional, 1.0: conditional}.get(
        scale, unconditional * (1 - scale) + conditional * scale
    )
    np.testing.assert_array_equal(guided, expected)
