"""The noise schedule beside numbers worked out elsewhere, without diffusers or torch."""

import numpy as np
import pytest

from triptych.sampling.schedule import SchedulerConfig, alphas_cumprod, make_schedule

SDXL = SchedulerConfig(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    timestep_spacing="leading",
    steps_offset=1,
)

# linspace(sqrt(1e-4), sqrt(0.02), 20) ** 2, worked out with 40 decimal digits.
BETAS_20 = [
    0.0001,
    0.000286181961898702,
    0.0005680513081478407,
    0.0009456080387474159,
    0.001418852153697428,
    0.001987783652997876,
    0.002652402536648761,
    0.003412708804650083,
    0.004268702457001841,
    0.005220383493704036,
    0.006267751914756668,
    0.007410807720159736,
    0.008649550909913241,
    0.009983981484017182,
    0.01141409944247156,
    0.01293990478527638,
    0.01456139751243163,
    0.01627857762393731,
    0.01809144511979344,
    0.02,
]


def test_betas_of_a_short_scaled_linear_schedule() -> None:
    config = SchedulerConfig(
        beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02, num_train_timesteps=20
    )
    abar = alphas_cumprod(config)
    betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    np.testing.assert_allclose(betas, BETAS_20, rtol=0, atol=1e-12)


def test_sdxl_signal_power_and_sigmas_at_the_ends() -> None:
    abar = alphas_cumprod(SDXL)
    sigmas = np.sqrt((1 - abar) / abar)
    assert abar.shape == (1000,)
    assert abar[999] == pytest.approx(0.004660098513077238, rel=1e-8)
    assert sigmas[0] == pytest.approx(0.029167158, rel=1e-8)
    assert sigmas[999] == pytest.approx(14.614641229, rel=1e-8)


def test_a_linspace_run_goes_from_one_end_of_the_training_schedule_to_the_other() -> None:
    config = SchedulerConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    schedule = make_schedule(config, num_inference_steps=2)
    assert schedule.timesteps.tolist() == [999.0, 0.0]
    # float32, hence seven digits
    assert schedule.sigmas.tolist() == pytest.approx([14.614641229, 0.029167158, 0.0], rel=1e-7)
    assert schedule.init_noise_sigma == pytest.approx(14.614641229, rel=1e-7)


@pytest.mark.parametrize(
    ("num_inference_steps", "timesteps"),
    [(4, range(751, 0, -250)), (20, range(951, 0, -50)), (50, range(981, 0, -20))],
)
def test_leading_timesteps_of_sdxl(num_inference_steps: int, timesteps: range) -> None:
    schedule = make_schedule(SDXL, num_inference_steps=num_inference_steps)
    assert schedule.timesteps.tolist() == list(timesteps)
    assert schedule.sigmas.shape == (num_inference_steps + 1,)
    assert schedule.sigmas[-1] == 0
    # Leading spacing starts below the last timestep: a unit of data variance is still there.
    assert schedule.init_noise_sigma == pytest.approx(
        (float(schedule.sigmas[0]) ** 2 + 1) ** 0.5, rel=1e-12
    )
