"""The training schedule beside diffusers': the same bits, where torch rounds as IEEE does."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.sampling.sigma_spacing import respaced_sigmas
from triptych.sampling.training import (
    alphas_cumprod,
    rounded_alphas_cumprod,
    timesteps_from_sigmas,
    training_sigmas,
)
from triptych.types import Array

BETAS: list[dict[str, object]] = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012},
    {},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 500},
    {"trained_betas": tuple(np.geomspace(1e-3, 2e-2, 1000).tolist())},
]
"""SDXL's first."""


def signal_of(scheduler: DDIMScheduler) -> Array:
    signal: Array = scheduler.alphas_cumprod.numpy()
    return signal


@pytest.mark.parametrize("betas", BETAS, ids=str)
def test_signal_has_the_same_bits(betas: dict[str, object]) -> None:
    ours = rounded_alphas_cumprod(SchedulerConfig(**betas))  # type: ignore[arg-type]
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, signal_of(DDIMScheduler(**betas)))


@given(
    ends=st.tuples(st.floats(1e-5, 5e-3), st.floats(6e-3, 5e-2)),
    schedule=st.sampled_from(["linear", "scaled_linear"]),
    total=st.integers(2, 1500),
)
@settings(max_examples=100, deadline=None)
def test_signal_of_any_betas(ends: tuple[float, float], schedule: str, total: int) -> None:
    betas = {
        "beta_start": ends[0],
        "beta_end": ends[1],
        "beta_schedule": schedule,
        "num_train_timesteps": total,
    }
    ours = rounded_alphas_cumprod(SchedulerConfig(**betas))  # type: ignore[arg-type]
    # One unit in the last place: torch's linspace rounds the stride of some lengths otherwise.
    np.testing.assert_array_max_ulp(ours, signal_of(DDIMScheduler(**betas)), maxulp=64)


@pytest.mark.parametrize("betas", BETAS[:3], ids=str)
def test_zero_signal_at_the_end(betas: dict[str, object]) -> None:
    config = SchedulerConfig(**betas, rescale_betas_zero_snr=True)  # type: ignore[arg-type]
    ours = rounded_alphas_cumprod(config)
    theirs = signal_of(LCMScheduler(**{**betas, "rescale_betas_zero_snr": True}))
    if not betas:  # LCM's own default betas are SDXL's
        theirs = signal_of(DDIMScheduler(rescale_betas_zero_snr=True))
    assert ours[-1] == theirs[-1] == 0
    np.testing.assert_allclose(ours, theirs, rtol=3e-4, atol=1e-9)  # the last ones are differences
    np.testing.assert_allclose(ours[:900], theirs[:900], rtol=1e-6)
    euler = EulerDiscreteScheduler(**betas, rescale_betas_zero_snr=True)
    assert training_sigmas(config)[-1] == pytest.approx(float(euler.sigmas[0]), rel=1e-6)


def test_rounding_is_all_that_differs_from_exact() -> None:
    config = SchedulerConfig(**BETAS[0])  # type: ignore[arg-type]
    np.testing.assert_allclose(rounded_alphas_cumprod(config), alphas_cumprod(config), rtol=1e-6)


def test_timesteps_of_sigmas() -> None:
    scheduler = EulerDiscreteScheduler(**BETAS[0])
    training = training_sigmas(SchedulerConfig(**BETAS[0]))  # type: ignore[arg-type]
    sigmas = np.concatenate([np.geomspace(20, 0.01, 300), training[::7].astype(np.float64)])
    logs = np.log(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy())
    expected = [float(scheduler._sigma_to_t(sigma, logs)) for sigma in sigmas]
    np.testing.assert_allclose(timesteps_from_sigmas(sigmas, training), expected, atol=2e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 50, 333])
def test_beta_spacing_is_scipys(count: int) -> None:
    scheduler = EulerDiscreteScheduler(use_beta_sigmas=True)
    ends = torch.tensor([14.6, 0.03])
    expected = scheduler._convert_to_beta(ends, count)
    ours = respaced_sigmas("beta", sigma_max=ends[0].item(), sigma_min=ends[1].item(), count=count)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
