"""The training schedule: how much signal is left at every training timestep, and its sigmas."""

import numpy as np

from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.types import Array

_ZERO_SNR_SIGNAL = np.float32(2**-24)
"""Signal power that diffusers' sigma schedulers put in place of none, so that sigma is finite."""


def alphas_cumprod(config: SchedulerConfig) -> Array:
    """Cumulative signal power abar_t for every training timestep, exact to float64.

    Source: Ho et al. 2020, arXiv:2006.11239; scaled_linear as in latent diffusion.
    """
    return np.cumprod(1.0 - _betas(config))


def rounded_alphas_cumprod(config: SchedulerConfig) -> Array:
    """abar_t as diffusers has it, float32: betas and their complements are rounded on the way.

    The rounding is worth repeating: it moves the smallest sigma by 2.6e-5 of itself, and decides
    between two timesteps where a scheduler cuts fractions off. With `rescale_betas_zero_snr` the
    last one is 0.

    Source:
        diffusers 0.39, any scheduler's __init__; torch.linspace and torch.cumprod accumulate in
        wider numbers and round once. Lin et al. 2023, arXiv:2305.08891, algorithm 1, for the
        rescaling. Same bits as diffusers': tests/reference/test_training_against_diffusers.py.
    """
    betas = _rounded_betas(config)
    if config.rescale_betas_zero_snr:
        betas = _rescaled_to_zero_snr(betas)
    return _signal_power(betas)


def training_sigmas(config: SchedulerConfig) -> Array:
    """Noise level sqrt((1 - abar) / abar) of every training timestep, ascending, float32.

    Finite also where betas are rescaled to zero signal at the end: diffusers' way.
    """
    return sigmas_from_signal(_never_zero(rounded_alphas_cumprod(config), _ZERO_SNR_SIGNAL))


def sigmas_from_signal(signal: Array) -> Array:
    """Noise levels of signal powers, in their dtype."""
    sigmas: Array = np.sqrt((1 - signal) / signal)
    return sigmas


def finite_signal(signal: Array) -> Array:
    """Signal powers without zeros: so little that nothing of it is left in float32 latents."""
    return _never_zero(signal, np.float32(1e-16))


def timesteps_from_sigmas(sigmas: Array, training: Array) -> Array:
    """Where noise levels lie on the training schedule: linear in log sigma, float64.

    Source: k-diffusion's sigma_to_t, as in every diffusers scheduler with sigmas.
    """
    logs = np.log(np.maximum(sigmas, 1e-10))
    grid = np.log(training)
    low = np.clip(np.searchsorted(grid, logs, side="right") - 1, 0, len(grid) - 2)
    share = (grid[low] - logs) / (grid[low] - grid[low + 1])
    share = np.clip(share, 0, 1)
    timesteps: Array = (1 - share) * low + share * (low + 1)
    return timesteps


def _never_zero(signal: Array, least: np.float32) -> Array:
    return np.where(signal == 0, least, signal)


def _betas(config: SchedulerConfig) -> Array:
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas, np.float64)
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, steps)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(config.beta_start**0.5, config.beta_end**0.5, steps) ** 2
    return _cosine_betas(steps)


def _cosine_betas(steps: int) -> Array:
    """Nichol and Dhariwal 2021, arXiv:2102.09672; capped at 0.999."""
    edges = np.arange(steps + 1) / steps
    abar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: Array = np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    return betas


def _rounded_betas(config: SchedulerConfig) -> Array:
    if config.trained_betas is not None or config.beta_schedule == "squaredcos_cap_v2":
        return _betas(config).astype(np.float32)
    start, end, steps = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.beta_schedule == "linear":
        return _rounded_linspace(start, end, steps)
    return _rounded_linspace(start**0.5, end**0.5, steps) ** 2


def _rounded_linspace(start: float, end: float, steps: int) -> Array:
    """torch.linspace in float32: from both ends towards the middle, by a rounded stride."""
    first, last = np.float32(start), np.float32(end)
    stride = np.float64((last - first) / np.float32(max(steps - 1, 1)))
    index = np.arange(steps)
    up = np.float64(first) + stride * index
    down = np.float64(last) - stride * (steps - 1 - index)
    return np.where(index < steps // 2, up, down).astype(np.float32)


def _signal_power(betas: Array) -> Array:
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def _rescaled_to_zero_snr(betas: Array) -> Array:
    root = np.sqrt(_signal_power(betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    power = root**2
    alphas = np.concatenate([power[:1], power[1:] / power[:-1]])
    rescaled: Array = np.float32(1) - alphas
    return rescaled
