"""From latents to pictures."""

import numpy as np

from triptych.errors import BlankPictureError
from triptych.models.sdxl import SdxlConfig
from triptych.sampling.network import Network
from triptych.types import Array, ImageFloats, ImagePixels, Latents

_LEAST_CONTRAST = 2 / 255
"""One level of 256 in -1 to 1: below it a picture has no detail at all."""


def decode_latents(vae_decoder: Network, latents: Latents, *, config: SdxlConfig) -> ImageFloats:
    """Decode latents to images, nominally in -1 to 1, one picture at a time to bound memory.

    Source: diffusers pipeline_stable_diffusion_xl.py, the end of __call__: latents are divided
    by the VAE's scaling_factor, 0.13025 for SDXL, or denormalised where its config says how.
    """
    unscaled = unscale_latents(latents, config)
    pictures = [
        vae_decoder.run({"latents": unscaled[row : row + 1]})["image"]
        for row in range(len(unscaled))
    ]
    return np.concatenate(pictures)


def check_not_blank(image: ImageFloats) -> None:
    """Refuse pictures that are black, or of any one colour: no sampler draws those.

    Raises:
        BlankPictureError: one is.
    """
    for row, picture in enumerate(image):
        flat = picture.reshape(len(picture), -1)
        if (np.ptp(flat, axis=1) < _LEAST_CONTRAST).all():
            colour = ", ".join(f"{level:.2g}" for level in flat[:, 0])
            raise BlankPictureError(
                f"picture {row}: got one colour all over ({colour} in -1 to 1), want a picture. "
                "A VAE in half precision overflows so: export it in fp32, or take one that is made "
                "for fp16."
            )


def pixels_from_image(image: ImageFloats) -> ImagePixels:
    """Finished pixels: (x / 2 + 0.5) clipped to 0 and 1, times 255, rounded, channels last.

    Source: diffusers image_processor.py, denormalize and numpy_to_pil.
    """
    unit = np.clip(image.astype(np.float32) / 2 + np.float32(0.5), 0, 1)
    pixels: ImagePixels = np.round(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def unscale_latents(latents: Latents, config: SdxlConfig) -> Latents:
    """What the VAE decoder takes: the inverse of `scale_latents`."""
    if config.latents_mean is None or config.latents_std is None:
        unscaled: Latents = latents / np.float32(config.scaling_factor)
        return unscaled
    mean, std = _per_channel(config.latents_mean), _per_channel(config.latents_std)
    denormalised: Latents = latents * std / np.float32(config.scaling_factor) + mean
    return denormalised


def scale_latents(unscaled: Latents, config: SdxlConfig) -> Latents:
    """What the VAE encoder gives, brought to about unit variance: the inverse of decoding's."""
    if config.latents_mean is None or config.latents_std is None:
        scaled: Latents = unscaled * np.float32(config.scaling_factor)
        return scaled
    mean, std = _per_channel(config.latents_mean), _per_channel(config.latents_std)
    normalised: Latents = (unscaled - mean) * np.float32(config.scaling_factor) / std
    return normalised


def _per_channel(values: tuple[float, ...]) -> Array:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)
