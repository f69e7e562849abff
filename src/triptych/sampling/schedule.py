"""One run's noise levels, and the formulas that every step shares.

Latents are x = alpha x0 + noise_level epsilon. Schedulers that follow k-diffusion keep alpha at 1
and let the noise explode; the others keep alpha^2 + noise_level^2 at 1. Callbacks see the latents
as diffusers' scheduler of that name keeps them, so a schedule says which of the two it is.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.scheduler_config import PredictionType
from triptych.sampling.weighted_sum import weighted_sum
from triptych.types import Array, Latents, NoisePred, Sigmas, Timesteps

LatentsVariance: TypeAlias = Literal["exploding", "preserved"]
"""exploding: x0 plus sigma times noise. preserved: that over sqrt(sigma^2 + 1), of unit variance.
Song et al. 2021, arXiv:2011.13456, call the two VE and VP."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The noise levels of one run. Every evaluation of the U-Net is a step.

    Attributes:
        timesteps: what the U-Net is told at each step, on the training schedule, never rising.
        sigmas: noise level before each step and after the last, sqrt((1 - abar) / abar), whatever
            the variance of the latents. Two steps of one level are one step of a method with two
            evaluations.
        init_noise_sigma: factor on the first unit noise.
        prediction_type: what the U-Net predicts.
        variance: how the latents are scaled.
        clip_range: estimates of x0 are clipped to plus and minus this; None leaves them alone.
        num_train_timesteps: length of the training schedule.
        evaluations_per_step: of the U-Net, for each step that a user counts.
    """

    timesteps: Timesteps
    sigmas: Sigmas
    init_noise_sigma: float
    prediction_type: PredictionType
    variance: LatentsVariance = "exploding"
    clip_range: float | None = None
    num_train_timesteps: int = 1000
    evaluations_per_step: int = 1

    @property
    def num_inference_steps(self) -> int:
        """Steps of the run: evaluations of the U-Net."""
        return len(self.timesteps)


def scale_model_input(latents: Latents, schedule: Schedule, index: int) -> Latents:
    """The U-Net's sample: latents at unit variance.

    Raises:
        ScheduleError: `index` is outside the schedule.

    Source: Karras et al. 2022, arXiv:2206.00364, c_in for variance-exploding models.
    """
    sigma = sigma_at(schedule, index)
    if schedule.variance == "preserved":
        return latents
    sample: Latents = (latents / np.sqrt(sigma**2 + 1)).astype(np.float32)
    return sample


def noised_latents(latents: Latents, noise: Latents, schedule: Schedule, index: int) -> Latents:
    """Latents of a picture brought to the noise level before a step.

    Args:
        latents: x0.
        noise: unit noise, shaped as the latents.
        schedule: the run's.
        index: the step that will start from the result.

    Raises:
        ScheduleError: `index` is outside the schedule.

    Source: diffusers 0.39, add_noise of any scheduler.
    """
    if schedule.variance == "preserved":
        signal, level = _levels(schedule, index)
    else:
        signal, level = 1.0, sigma_at(schedule, index)
    noised: Latents = (signal * latents + level * noise).astype(np.float32)
    return noised


def denoised_from_noise_pred(
    noise_pred: NoisePred, latents: Latents, schedule: Schedule, index: int
) -> Array:
    """The model's estimate of x0 at one step, float64; clipped where the schedule says so.

    Raises:
        ScheduleError: `index` is outside the schedule.

    Source: diffusers 0.39, pred_original_sample in any scheduler's step.
    """
    alpha, noise_level = _levels(schedule, index)
    to_unit = alpha if schedule.variance == "exploding" else 1.0
    if schedule.prediction_type == "epsilon":  # (x - noise_level * prediction) / alpha
        factors = to_unit / alpha, -noise_level / alpha
    else:  # alpha * x - noise_level * prediction
        factors = to_unit * alpha, -noise_level
    denoised = weighted_sum((factors[0], latents), (factors[1], noise_pred))
    if schedule.clip_range is None:
        return denoised
    return np.clip(denoised, -schedule.clip_range, schedule.clip_range)


def epsilon_from_noise_pred(
    noise_pred: NoisePred, latents: Latents, schedule: Schedule, index: int
) -> Array:
    """The model's estimate of the unit noise in the latents, float64. Never clipped.

    Raises:
        ScheduleError: `index` is outside the schedule.
    """
    alpha, noise_level = _levels(schedule, index)
    prediction = noise_pred.astype(np.float64)
    if schedule.prediction_type == "epsilon":
        return prediction
    return alpha * prediction + noise_level * _unit_variance(latents, schedule, index)


def preserved_levels(sigma: float) -> tuple[float, float]:
    """What a sigma is to latents of unit variance: the factors of the picture and of the noise."""
    length = math.hypot(sigma, 1)
    return 1 / length, sigma / length


def sigma_at(schedule: Schedule, index: int) -> float:
    """The noise level before a step.

    Raises:
        ScheduleError: `index` is outside the schedule.
    """
    if not 0 <= index < schedule.num_inference_steps:
        raise ScheduleError(
            f"step index: got {index}, want 0 to {schedule.num_inference_steps - 1}."
        )
    return float(schedule.sigmas[index])


def _levels(schedule: Schedule, index: int) -> tuple[float, float]:
    return preserved_levels(sigma_at(schedule, index))


def _unit_variance(latents: Latents, schedule: Schedule, index: int) -> Array:
    """`scale_model_input` in float64."""
    x = latents.astype(np.float64)
    if schedule.variance == "preserved":
        return x
    unit: Array = x * _levels(schedule, index)[0]
    return unit
