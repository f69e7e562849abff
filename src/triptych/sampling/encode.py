"""From pictures to latents."""

import numpy as np

from triptych.models.sdxl import SdxlConfig
from triptych.sampling.decode import scale_latents
from triptych.sampling.network import Network
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.types import Array, ImageFloats, Latents

_LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Source: diffusers autoencoders/vae.py, DiagonalGaussianDistribution."""


def encode_image(
    vae_encoder: Network, image: ImageFloats, stream: NoiseStream, *, config: SdxlConfig
) -> tuple[Latents, NoiseStream]:
    """Draw latents from the VAE's posterior, scaled for the U-Net; one picture at a time.

    Args:
        vae_encoder: open.
        image: pictures in -1 to 1, edges divisible by 8.
        stream: where the generators stand.
        config: the model's numbers.

    Returns:
        The latents, and the stream after the draw.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl_img2img.py, prepare_latents.
    """
    moments = np.concatenate(
        [
            vae_encoder.run({"image": np.ascontiguousarray(image[row : row + 1])})["moments"]
            for row in range(len(image))
        ]
    )
    mean, log_variance = np.split(moments, 2, axis=1)
    deviation: Array = np.exp(np.float32(0.5) * np.clip(log_variance, *_LOG_VARIANCE_RANGE))
    noise, after = draw_noise(stream, mean.shape)
    return scale_latents(mean + deviation * noise, config), after
