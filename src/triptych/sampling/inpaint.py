"""Runs that make only a part of a picture anew, with U-Nets for it and with ordinary ones.

A U-Net for inpainting (9 channels) is told the mask and the picture without that part. An ordinary
one (4 channels) knows nothing of it: after every step what is kept is put back, noised to the level
that the latents are at.

Source: diffusers 0.39 pipeline_stable_diffusion_xl_inpaint.py.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.sampling.schedule import Schedule, noised_latents, scale_model_input
from triptych.types import Array, ImageFloats, ImageMask, LatentMask, Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Inpaint:
    """What a run with a mask keeps to, one row a picture.

    Attributes:
        mask: what is made anew, in latent cells.
        masked_latents: the picture without that part, for a U-Net that is told it; None for one
            that is not.
        kept_latents: the picture, put back after every step; None where the U-Net keeps it itself.
        noise: unit noise that brings them to a step's level.
    """

    mask: LatentMask
    masked_latents: Latents | None = None
    kept_latents: Latents | None = None
    noise: Latents


def unet_sample(
    latents: Latents, schedule: Schedule, index: int, inpaint: Inpaint | None = None
) -> Array:
    """What the U-Net is given for its sample: scaled latents, then mask and masked picture.

    Raises:
        ScheduleError: `index` is outside the schedule.
    """
    sample = scale_model_input(latents, schedule, index)
    if inpaint is None or inpaint.masked_latents is None:
        return sample
    return np.concatenate([sample, inpaint.mask, inpaint.masked_latents], axis=1)


def with_kept_part(
    latents: Latents, schedule: Schedule, inpaint: Inpaint | None, *, next_index: int | None
) -> Latents:
    """Latents after a step, with the part that is kept put back.

    Args:
        latents: after the step.
        schedule: the run's.
        inpaint: what is kept; None keeps nothing.
        next_index: the step that comes next, whose noise level they are at; None after the last,
            where what is kept goes in as it is.
    """
    if inpaint is None or inpaint.kept_latents is None:
        return latents
    kept = inpaint.kept_latents
    if next_index is not None:
        kept = noised_latents(kept, inpaint.noise, schedule, next_index)
    blended: Latents = (1 - inpaint.mask) * kept + inpaint.mask * latents
    return blended


def latent_mask(mask: ImageMask, *, scale: int) -> LatentMask:
    """A mask in latent cells, 0 or 1: each takes the pixel at its top left.

    Args:
        mask: of the picture.
        scale: image pixels for one latent cell.

    Source: prepare_mask_latents, which interpolates to the nearest pixel.
    """
    return _is_made_anew(mask[:, :, ::scale, ::scale]).astype(np.float32)


def masked_image(image: ImageFloats, mask: ImageMask) -> ImageFloats:
    """The picture with the part that is made anew at 0, which is grey.

    Source: __call__, 5.
    """
    masked: ImageFloats = image * ~_is_made_anew(mask)
    return masked


def _is_made_anew(mask: Array) -> Array:
    """Source: diffusers 0.39 image_processor.py, VaeImageProcessor.binarize."""
    return mask >= 0.5
