"""A picture from latents without a decoder: a linear map of four channels to three colours."""

import numpy as np

from triptych.types import ImagePixels, Latents

# Red, green and blue from the four latent channels, and the offset of each colour.
# Source: diffusers docs/source/en/using-diffusers/callback.md, latents_to_rgb, for SDXL's VAE.
_WEIGHTS = np.array([[60, -60, 25, -70], [60, -5, 15, -50], [60, 10, -5, -35]], dtype=np.float32)
_OFFSETS = np.array([150, 140, 130], dtype=np.float32)


def preview_pixels(latents: Latents) -> ImagePixels:
    """An approximate picture, one pixel a latent cell, channels last.

    Good enough to see a composition form, at no cost. Give it the `denoised` of a StepEvent for
    what the step believes the picture is, or its `latents` for what it holds.
    """
    colours = np.einsum("bchw,rc->bhwr", latents, _WEIGHTS) + _OFFSETS
    pixels: ImagePixels = np.clip(colours, 0, 255).astype(np.uint8)
    return pixels
