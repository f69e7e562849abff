"""Noise levels between a largest and a smallest one, from formulas alone."""

import math

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.scheduler_config import SchedulerConfig, SigmaSpacing
from triptych.sampling.training import alphas_cumprod, sigmas_from_signal
from triptych.types import Array

_BETA_SHAPE = 0.6
"""Both parameters of the beta distribution. Source: Lee et al. 2024, arXiv:2407.12173."""


def respaced_sigmas(
    spacing: SigmaSpacing, *, sigma_max: float, sigma_min: float, count: int
) -> Array:
    """`count` noise levels from the largest to the smallest, float64.

    Source: diffusers 0.39, _convert_to_karras, _convert_to_exponential, _convert_to_beta and
    _convert_to_lu.
    """
    match spacing:
        case "karras":
            return karras_sigmas(sigma_max=sigma_max, sigma_min=sigma_min, rho=7.0, count=count)
        case "exponential" | "lu":  # an even spacing of log sigma, under two names
            return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), count))
        case "beta":
            quantiles = _beta_quantiles(1 - np.linspace(0, 1, count))
            return sigma_min + quantiles * (sigma_max - sigma_min)


def karras_sigmas(*, sigma_max: float, sigma_min: float, rho: float, count: int) -> Array:
    """`count` noise levels, evenly spaced in their rho-th root; rho = 1 is a straight line.

    Cremage's and sgm's EDMDiscretization, without the 0 that samplers append.

    Raises:
        ScheduleError: no levels at all, or ends and a rho that span no range.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    if count < 1 or not 0 < sigma_min <= sigma_max or rho <= 0:
        raise ScheduleError(
            f"Karras sigmas: got {count} from {sigma_max:g} to {sigma_min:g} with rho {rho:g}, "
            "want at least one, 0 < sigma_min <= sigma_max and rho > 0."
        )
    ramp = np.linspace(0, 1, count)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas: Array = (high + ramp * (low - high)) ** rho
    return sigmas


def legacy_ddpm_sigmas(config: SchedulerConfig, *, count: int) -> Array:
    """`count` levels of the training schedule, evenly spaced from its end down, float64.

    Cremage's and sgm's LegacyDDPMDiscretization, without the 0 that samplers append. Where `count`
    divides the training schedule these are diffusers' trailing timesteps; elsewhere the two round
    differently.

    Raises:
        ScheduleError: no levels at all, or more than the training schedule has.
    """
    total = config.num_train_timesteps
    if not 1 <= count <= total:
        raise ScheduleError(f"legacy DDPM sigmas: got {count}, want 1 to {total}.")
    timesteps = np.linspace(total - 1, 0, count, endpoint=False).astype(np.int64)
    return sigmas_from_signal(alphas_cumprod(config))[timesteps]


def _beta_quantiles(probabilities: Array) -> Array:
    """Where the symmetric beta distribution of shape 0.6 has reached each probability.

    By halving: 80 times leaves nothing of the interval in float64. The distribution is its own
    mirror image, so that the series is summed below one half only, where it is quick.
    """
    low, high = np.zeros_like(probabilities), np.full_like(probabilities, 0.5)
    lower = np.minimum(probabilities, 1 - probabilities)
    for _ in range(80):
        middle = (low + high) / 2
        below = _beta_distribution(middle) < lower
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    quantiles = (low + high) / 2
    mirrored = np.where(probabilities > 0.5, 1 - quantiles, quantiles)
    # Halving ends beside 0 and 1, never at them.
    return np.where(np.isin(probabilities, (0, 1)), probabilities, mirrored)


def _beta_distribution(x: Array) -> Array:
    """Incomplete beta function by its power series; for x up to one half.

    Source: Abramowitz and Stegun, 26.5.4 and 15.1.1: x^a / (a B(a, b)) 2F1(a, 1 - b; a + 1; x).
    """
    shape = _BETA_SHAPE
    term, total = np.ones_like(x), np.zeros_like(x)
    for k in range(64):
        total = total + term * shape / (shape + k)
        term = term * x * (k + 1 - shape) / (k + 1)
    norm = shape * math.gamma(shape) ** 2 / math.gamma(2 * shape)
    distribution: Array = x**shape * total / norm
    return distribution
