"""Classifier-free guidance around the U-Net: as one batch of two halves, or as two calls."""

from typing import Literal, TypeAlias

import numpy as np

from triptych.sampling.conditioning import Conditioning
from triptych.sampling.network import Network
from triptych.types import Array, NoisePred

GuidanceMode: TypeAlias = Literal["batched", "split"]
"""batched: one call with both halves. split: two calls, half the memory, for fixed batches too."""


def is_guided(guidance_scale: float) -> bool:
    """Whether a scale makes guidance do anything; diffusers' rule: only above 1."""
    return guidance_scale > 1


def predict_noise(
    unet: Network,
    sample: Array,
    *,
    timestep: float,
    conditioning: Conditioning,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    mode: GuidanceMode = "batched",
) -> NoisePred:
    """The guided noise prediction for one step: uncond + scale * (cond - uncond).

    Args:
        unet: the U-Net.
        sample: scaled latents, one row a picture; for inpainting U-Nets what else they are told.
        timestep: position on the training schedule.
        conditioning: both halves, unconditional first, where the scale asks for guidance;
            otherwise the conditional half counts, with or without the other before it.
        guidance_scale: w; up to 1 means no guidance.
        guidance_rescale: phi, the share of `rescaled_guidance`; 0 leaves the prediction alone.
        mode: one call or two. The same numbers but for rounding.

    Source: Ho and Salimans 2022, arXiv:2207.12598; Imagen's w, as in diffusers.
    """
    if not is_guided(guidance_scale):
        if len(conditioning.text_embeds) == 2 * len(sample):
            conditioning = split_halves(conditioning)[1]
        return _run(unet, sample, timestep=timestep, conditioning=conditioning)
    if mode == "batched":
        both = _run(
            unet, np.concatenate([sample, sample]), timestep=timestep, conditioning=conditioning
        )
        unconditional, conditional = np.split(both, 2)
    else:
        unconditional, conditional = (
            _run(unet, sample, timestep=timestep, conditioning=half)
            for half in split_halves(conditioning)
        )
    guided = classifier_free_guidance(unconditional, conditional, guidance_scale=guidance_scale)
    if guidance_rescale > 0:
        return rescaled_guidance(guided, conditional, guidance_rescale=guidance_rescale)
    return guided


def classifier_free_guidance(
    unconditional: NoisePred, conditional: NoisePred, *, guidance_scale: float
) -> NoisePred:
    """Away from the unconditional prediction: 0 stays there, 1 is the conditional one, and so on.

    The formula alone, for any scale, negative ones too: sgm's and Cremage's VanillaCFG. Their
    IdentityGuider is no call at all. Whether a run is guided is `is_guided`'s to say.
    """
    step: NoisePred = np.float32(guidance_scale) * (conditional - unconditional)
    guided: NoisePred = unconditional + step
    return guided


def rescaled_guidance(
    guided: NoisePred, conditional: NoisePred, *, guidance_rescale: float
) -> NoisePred:
    """Against over-exposed pictures: the guided prediction with the conditional one's deviation.

    Args:
        guided: after guidance.
        conditional: before it.
        guidance_rescale: phi, 0 to 1, how much of the result is rescaled.

    Source: Lin et al. 2023, arXiv:2305.08891, section 3.4; diffusers 0.39
    pipeline_stable_diffusion_xl.py, rescale_noise_cfg.
    """
    axes = tuple(range(1, guided.ndim))
    wanted = conditional.std(axis=axes, keepdims=True, ddof=1)
    rescaled = guided * (wanted / guided.std(axis=axes, keepdims=True, ddof=1))
    phi = np.float32(guidance_rescale)
    mixed: NoisePred = phi * rescaled + (1 - phi) * guided
    return mixed


def split_halves(conditioning: Conditioning) -> tuple[Conditioning, Conditioning]:
    """The unconditional and the conditional half of a guidance batch."""
    states = np.split(conditioning.encoder_hidden_states, 2)
    embeds = np.split(conditioning.text_embeds, 2)
    ids = np.split(conditioning.time_ids, 2)
    unconditional, conditional = (
        Conditioning(encoder_hidden_states=state, text_embeds=embed, time_ids=time_id)
        for state, embed, time_id in zip(states, embeds, ids, strict=True)
    )
    return unconditional, conditional


def _run(unet: Network, sample: Array, *, timestep: float, conditioning: Conditioning) -> NoisePred:
    feed = {
        "sample": np.ascontiguousarray(sample),
        "timestep": np.array(timestep, np.float32),
        "encoder_hidden_states": np.ascontiguousarray(conditioning.encoder_hidden_states),
        "text_embeds": np.ascontiguousarray(conditioning.text_embeds),
        "time_ids": np.ascontiguousarray(conditioning.time_ids),
    }
    return unet.run(feed)["noise_pred"]
