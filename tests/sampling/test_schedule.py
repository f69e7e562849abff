"""Timesteps, noise levels and what is refused; beside diffusers' numbers in tests/reference."""

import numpy as np
import pytest

from triptych.errors import ScheduleError
from triptych.sampling.samplers import make_schedule
from triptych.sampling.schedule import (
    LatentsVariance,
    Schedule,
    denoised_from_noise_pred,
    epsilon_from_noise_pred,
    preserved_levels,
    scale_model_input,
)
from triptych.sampling.scheduler_config import (
    PredictionType,
    SchedulerConfig,
    TimestepSpacing,
)
from triptych.sampling.training import alphas_cumprod
from triptych.types import Latents

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SDXL_SIGMA_MAX = 14.6146  # k-diffusion and every Stable Diffusion UI since
SDXL_SIGMA_MIN = 0.0292


def config(**settings: object) -> SchedulerConfig:
    return SchedulerConfig(**{**SDXL, **settings})  # type: ignore[arg-type]


def two_levels(
    *,
    prediction_type: PredictionType = "epsilon",
    variance: LatentsVariance = "exploding",
    clip_range: float | None = None,
) -> Schedule:
    return Schedule(
        timesteps=np.array([900, 100], np.float32),
        sigmas=np.array([3, 0.75, 0], np.float32),
        init_noise_sigma=3.0,
        prediction_type=prediction_type,
        variance=variance,
        clip_range=clip_range,
    )


def noised(picture: Latents, noise: Latents, schedule: Schedule, index: int) -> Latents:
    sigma = float(schedule.sigmas[index])
    latents = picture + sigma * noise
    if schedule.variance == "preserved":
        latents = latents / np.sqrt(sigma**2 + 1)
    return latents.astype(np.float32)


def gaussian(seed: int = 0) -> Latents:
    return np.random.default_rng(seed).standard_normal((2, 4, 3, 5)).astype(np.float32)


# --- where the steps lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "offset", "timesteps"),
    [
        ("leading", 1, [751, 501, 251, 1]),
        ("leading", 0, [750, 500, 250, 0]),
        ("linspace", 0, [999, 666, 333, 0]),
        ("trailing", 0, [999, 749, 499, 249]),
    ],
)
def test_spacings(spacing: TimestepSpacing, offset: int, timesteps: list[float]) -> None:
    schedule = make_schedule(
        config(timestep_spacing=spacing, steps_offset=offset), num_inference_steps=4
    )
    np.testing.assert_array_equal(schedule.timesteps, np.array(timesteps, np.float32))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 999, 1000])
def test_noise_falls_step_by_step_to_zero(spacing: TimestepSpacing, steps: int) -> None:
    schedule = make_schedule(config(timestep_spacing=spacing), num_inference_steps=steps)

    assert schedule.num_inference_steps == len(schedule.timesteps) == steps
    assert len(schedule.sigmas) == steps + 1
    assert schedule.timesteps.dtype == schedule.sigmas.dtype == np.float32
    assert (np.diff(schedule.sigmas) < 0).all()
    assert schedule.sigmas[-1] == 0
    assert schedule.timesteps.min() >= 0
    assert schedule.timesteps.max() <= 999


def test_sigmas_are_those_of_the_training_schedule() -> None:
    abar = 1.0
    expected = []
    for step in range(1000):  # as the papers write it, one beta after the other
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * step / 999
        abar *= 1 - root**2
        expected.append(((1 - abar) / abar) ** 0.5)

    schedule = make_schedule(
        config(timestep_spacing="leading", steps_offset=1), num_inference_steps=4
    )

    # 2e-5: the run's betas are float32, as diffusers'.
    np.testing.assert_allclose(
        schedule.sigmas[:-1], [expected[t] for t in (751, 501, 251, 1)], rtol=2e-5
    )
    assert expected[-1] == pytest.approx(SDXL_SIGMA_MAX, abs=1e-4)
    assert expected[0] == pytest.approx(SDXL_SIGMA_MIN, abs=1e-4)


def test_first_noise_is_scaled_to_the_first_level() -> None:
    leading = make_schedule(config(timestep_spacing="leading"), num_inference_steps=10)
    linspace = make_schedule(config(timestep_spacing="linspace"), num_inference_steps=10)

    sigma = float(leading.sigmas[0])
    assert leading.init_noise_sigma == pytest.approx((sigma**2 + 1) ** 0.5, rel=1e-12)
    assert linspace.init_noise_sigma == pytest.approx(SDXL_SIGMA_MAX, abs=1e-4)


def test_last_sigma_can_be_the_smallest_of_training() -> None:
    schedule = make_schedule(config(final_sigmas_type="sigma_min"), num_inference_steps=5)
    assert schedule.sigmas[-1] == pytest.approx(SDXL_SIGMA_MIN, abs=1e-4)


def test_log_linear_sigmas_have_equal_ratios() -> None:
    schedule = make_schedule(config(interpolation_type="log_linear"), num_inference_steps=6)
    ratios = schedule.sigmas[1:] / schedule.sigmas[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
    assert schedule.sigmas[0] == pytest.approx(SDXL_SIGMA_MAX, abs=1e-4)
    assert schedule.sigmas[-1] == pytest.approx(SDXL_SIGMA_MIN, abs=1e-4)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_signal_only_falls(beta_schedule: str) -> None:
    abar = alphas_cumprod(config(beta_schedule=beta_schedule))
    assert abar.shape == (1000,)
    assert ((abar > 0) & (abar < 1)).all()
    assert (np.diff(abar) < 0).all()


def test_trained_betas_replace_the_schedule() -> None:
    abar = alphas_cumprod(config(trained_betas=(0.5, 0.5, 0.2), num_train_timesteps=3))
    np.testing.assert_allclose(abar, [0.5, 0.25, 0.2])


# --- the two formulas of a step ------------------------------------------------------------------


def test_sample_has_unit_variance_at_any_level() -> None:
    latents = gaussian()
    np.testing.assert_allclose(
        scale_model_input(latents, two_levels(), 0), latents / 10**0.5, rtol=1e-6
    )
    np.testing.assert_allclose(scale_model_input(latents, two_levels(), 1), latents / 1.25)
    assert scale_model_input(latents, two_levels(), 0).dtype == np.float32


def test_sample_of_latents_of_unit_variance_is_the_latents() -> None:
    latents = gaussian()
    np.testing.assert_array_equal(
        scale_model_input(latents, two_levels(variance="preserved"), 0), latents
    )


@pytest.mark.parametrize("variance", ["exploding", "preserved"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("index", [0, 1])
def test_latents_are_taken_apart_into_picture_and_noise(
    index: int, prediction_type: PredictionType, variance: LatentsVariance
) -> None:
    schedule = two_levels(prediction_type=prediction_type, variance=variance)
    picture, noise = gaussian(1), gaussian(2)
    sigma = schedule.sigmas[index]
    alpha = 1 / np.sqrt(sigma**2 + 1)  # Salimans and Ho: v = alpha * noise - sigma * picture,
    velocity = alpha * noise - sigma * alpha * picture  # both for variance-preserving latents
    answer = noise if prediction_type == "epsilon" else velocity.astype(np.float32)
    latents = noised(picture, noise, schedule, index)

    denoised = denoised_from_noise_pred(answer, latents, schedule, index)
    epsilon = epsilon_from_noise_pred(answer, latents, schedule, index)

    assert denoised.dtype == epsilon.dtype == np.float64
    np.testing.assert_allclose(denoised, picture, atol=2e-6)
    np.testing.assert_allclose(epsilon, noise, atol=2e-6)


@pytest.mark.parametrize("variance", ["exploding", "preserved"])
def test_only_the_estimate_of_the_picture_is_clipped(variance: LatentsVariance) -> None:
    schedule = two_levels(variance=variance, clip_range=0.5)
    picture, noise = gaussian(1), gaussian(2)
    latents = noised(picture, noise, schedule, 0)

    denoised = denoised_from_noise_pred(noise, latents, schedule, 0)

    np.testing.assert_allclose(denoised, np.clip(picture, -0.5, 0.5), atol=2e-6)
    np.testing.assert_array_equal(epsilon_from_noise_pred(noise, latents, schedule, 0), noise)


def test_levels_of_unit_variance() -> None:
    assert preserved_levels(0.75) == pytest.approx((0.8, 0.6))
    assert preserved_levels(0.0) == (1.0, 0.0)
    assert preserved_levels(1e8) == pytest.approx((1e-8, 1.0))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_training_schedule(steps: int) -> None:
    with pytest.raises(ScheduleError, match=f"num_inference_steps: got {steps}, want 1 to 1000"):
        make_schedule(config(), num_inference_steps=steps)


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_index_outside_the_schedule(index: int) -> None:
    with pytest.raises(ScheduleError, match=f"got {index}, want 0 to 1"):
        scale_model_input(gaussian(), two_levels(), index)
    with pytest.raises(ScheduleError, match=f"got {index}, want 0 to 1"):
        denoised_from_noise_pred(gaussian(), gaussian(), two_levels(), index)


def test_trailing_spacing_never_makes_a_step_too_many() -> None:
    config = SchedulerConfig(timestep_spacing="trailing")
    for steps in (61, 103, 121, 122):  # where rounding leaves room for a timestep of -1
        schedule = make_schedule(config, num_inference_steps=steps)
        assert schedule.num_inference_steps == steps
        assert schedule.timesteps.min() >= 0
