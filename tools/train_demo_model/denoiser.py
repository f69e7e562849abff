"""The second stage: the U-Net and both text encoders, together, on the autoencoder's latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from architecture import Networks
from examples import Examples, partial_caption
from run import Losses, Stage, train

from triptych.models.published import SCHEDULER

_BATCH = 32
_UNCONDITIONAL_SHARE = 0.1
"""Of prompts, replaced by zeros as `force_zeros_for_empty_prompt` does: for guidance."""

_LARGEST_SNR = 5.0
"""Hang et al. 2023, arXiv:2303.09556: gamma."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a stage takes its steps from.

    Attributes:
        whole: share of the examples that are neither blurred nor cropped.
        cropped: share of the examples that are cropped; the rest is blurred.
        upper: share of the examples that are taken from `upper_levels` on.
        upper_levels: the least of the 1000 noise levels for those.
        of_pictures: whether errors count as of pictures; see `train_denoiser`.
    """

    whole: float
    cropped: float
    upper: float = 0.0
    upper_levels: int = 0
    of_pictures: bool = False


def train_denoiser(
    networks: Networks,
    examples: Examples,
    latents: torch.Tensor,
    *,
    lesson: Lesson,
    stage: Stage,
    folder: Path,
) -> None:
    """Train to predict noise: the mean square, weighted by min(SNR, 5) / SNR.

    Where a shape is, is decided at noise levels at which it hardly changes the noise to predict: an
    error of the picture counts there by its SNR, 0.005 at the highest level. A lesson of
    pictures divides by it, as if pictures were predicted.

    Args:
        networks: trained in place, but for the autoencoder.
        examples: what the latents show.
        latents: scaled: one mean square for all of SDXL's noise schedule.
        lesson: what is taken.
        stage: how long.
        folder: where it is saved.
    """
    trained = networks.denoising()
    device = next(trained.parameters()).device
    alphas_cumprod = torch.from_numpy(_alphas_cumprod()).float()
    time_ids = torch.tensor(examples.time_ids, dtype=torch.float32)
    whole, cropped, blurred = examples.whole(), examples.cropped(), examples.blurred()

    def compute(step: int, generator: np.random.Generator) -> Losses:
        del step
        kind = generator.random(_BATCH)
        chosen = np.where(
            kind < lesson.whole,
            generator.choice(whole, _BATCH),
            np.where(
                kind < lesson.whole + lesson.cropped,
                generator.choice(cropped, _BATCH),
                generator.choice(blurred, _BATCH),
            ),
        )
        captions = [partial_caption(examples.scenes[index], generator) for index in chosen]
        is_kept = generator.random(_BATCH) >= _UNCONDITIONAL_SHARE
        lowest = np.where(generator.random(_BATCH) < lesson.upper, lesson.upper_levels, 0)
        timesteps = torch.from_numpy(generator.integers(lowest, len(alphas_cumprod)))
        noise = torch.from_numpy(
            generator.standard_normal((_BATCH, *latents.shape[1:]), np.float32)
        )
        signal = alphas_cumprod[timesteps][:, None, None, None]
        sample = signal.sqrt() * latents[chosen] + (1 - signal).sqrt() * noise
        hidden, pooled = encode_prompts(networks, captions)
        keep = torch.from_numpy(is_kept).to(device, torch.float32)
        noise_pred = networks.unet(
            sample.to(device),
            timesteps.to(device),
            encoder_hidden_states=hidden * keep[:, None, None],
            added_cond_kwargs={
                "text_embeds": pooled * keep[:, None],
                "time_ids": time_ids[chosen].to(device),
            },
        ).sample
        errors = (noise_pred - noise.to(device)).square().mean(dim=(1, 2, 3))
        snr = (signal / (1 - signal)).flatten().to(device)
        weights = snr.clamp(max=_LARGEST_SNR) / snr
        if lesson.of_pictures:
            weights = weights / snr.clamp(max=1)
        return {"loss": (weights * errors).mean(), "mse": errors.mean()}

    train(trained, compute, stage=stage, folder=folder)


def encode_prompts(networks: Networks, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """What SDXL's U-Net is given: both penultimate hidden states, and the pooled projection."""
    device = next(networks.unet.parameters()).device
    ids = [
        tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(device)
        for tokenizer in networks.tokenizers.values()
    ]
    first = networks.text_encoder(ids[0], output_hidden_states=True)
    second = networks.text_encoder_2(ids[1], output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return hidden, second.text_embeds


def _alphas_cumprod() -> np.ndarray:
    """SDXL's noise schedule: its square roots of beta are evenly spaced ("scaled_linear")."""
    start, end = (float(str(SCHEDULER[name])) ** 0.5 for name in ("beta_start", "beta_end"))
    count = int(str(SCHEDULER["num_train_timesteps"]))
    return np.asarray(np.cumprod(1 - np.linspace(start, end, count) ** 2))
