"""The noise schedule beside numbers worked out elsewhere, without diffusers or torch."""

from dataclasses import replace

import numpy as np
import pytest

from triptych.errors import ScheduleError
from triptych.sampling.samplers import make_schedule
from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.sampling.sigma_spacing import karras_sigmas, legacy_ddpm_sigmas
from triptych.sampling.training import alphas_cumprod

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
    # The run's betas are rounded to float32 as diffusers' are: at the lowest, 1 - abar keeps
    # less than five digits.
    assert schedule.sigmas.tolist() == pytest.approx([14.614641229, 0.029167158, 0.0], rel=3e-5)
    assert schedule.init_noise_sigma == pytest.approx(14.614641229, rel=1e-6)


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


# --- sgm's and Cremage's discretizations ---------------------------------------------------------

# seeds/004, "EDMDiscretization", n = 20: computed in float32 with sgm's defaults 0.002, 80 and 7.
EDM_20 = [
    *(79.99998474121094, 59.657501220703125, 43.920257568359375, 31.88442039489746),
    *(22.794111251831055, 16.02229881286621, 11.05366325378418, 7.468902587890625),
    *(4.930656909942627, 3.1708412170410156, 1.979400634765625, 1.1943087577819824),
    *(0.6928236484527588, 0.3838551640510559, 0.20140404999256134, 0.09897341579198837),
    *(0.04488256946206093, 0.01840081810951233, 0.006621698383241892, 0.0019999996293336153),
]

# seeds/004, "Legacy DDPM Discretization", n = 50.
LEGACY_DDPM_50 = [
    *(14.614641189575195, 12.966320991516113, 11.542771339416504, 10.309401512145996),
    *(9.237422943115234, 8.302803039550781, 7.485421180725098, 6.768382549285889),
    *(6.137460708618164, 5.580644607543945, 5.08776330947876, 4.650183200836182),
    *(4.260556697845459, 3.9126131534576416, 3.6009886264801025, 3.3210830688476562),
    *(3.0689430236816406, 2.8411612510681152, 2.634795665740967, 2.4472994804382324),
    *(2.276463031768799, 2.1203653812408447, 1.977332353591919, 1.8459018468856812),
    *(1.7247940301895142, 1.6128861904144287, 1.5091912746429443, 1.4128390550613403),
    *(1.3230608701705933, 1.2391756772994995, 1.1605783700942993, 1.0867294073104858),
    *(1.0171462297439575, 0.9513954520225525, 0.8890852332115173, 0.8298594951629639),
    *(0.773391842842102, 0.7193796038627625, 0.6675384640693665, 0.6175960898399353),
    *(0.5692849159240723, 0.5223334431648254, 0.47645437717437744, 0.4313262701034546),
    *(0.3865651786327362, 0.3416738212108612, 0.29594171047210693, 0.24822042882442474),
    *(0.19630272686481476, 0.13445067405700684),
]


def test_edm_sigmas_are_the_printed_ones() -> None:
    sigmas = karras_sigmas(sigma_max=80.0, sigma_min=0.002, rho=7.0, count=20)
    np.testing.assert_allclose(sigmas, EDM_20, rtol=1e-5)


def test_legacy_ddpm_sigmas_are_the_printed_ones() -> None:
    np.testing.assert_allclose(legacy_ddpm_sigmas(SDXL, count=50), LEGACY_DDPM_50, rtol=1e-6)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_edm_sigmas_go_from_end_to_end_and_rho_1_is_straight(rho: float) -> None:
    # Cremage's own defaults are 0.0292, 14.6146 and 3.
    sigmas = karras_sigmas(sigma_max=14.6146, sigma_min=0.0292, rho=rho, count=30)
    assert sigmas[[0, -1]].tolist() == pytest.approx([14.6146, 0.0292], rel=1e-12)
    assert (np.diff(sigmas) < 0).all()
    if rho == 1:
        np.testing.assert_allclose(np.diff(sigmas, n=2), 0, atol=1e-12)


def test_edm_sigmas_can_be_walked_by_euler() -> None:
    sigmas = karras_sigmas(sigma_max=14.6146, sigma_min=0.0292, rho=3.0, count=20)
    schedule = make_schedule(SDXL, sigmas=(*sigmas.tolist(), 0.0))
    np.testing.assert_allclose(schedule.sigmas[:-1], sigmas, rtol=1e-6)
    assert schedule.timesteps[0] == pytest.approx(999, abs=1e-3)
    assert schedule.timesteps[-1] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("count", "same"), [(20, True), (50, True), (30, False), (60, False)])
def test_legacy_ddpm_is_trailing_only_where_it_divides(count: int, *, same: bool) -> None:
    trailing = make_schedule(replace(SDXL, timestep_spacing="trailing"), num_inference_steps=count)
    legacy = legacy_ddpm_sigmas(SDXL, count=count)
    assert np.allclose(trailing.sigmas[:-1], legacy, rtol=1e-5) is same


@pytest.mark.parametrize("count", [0, 1001])
def test_legacy_ddpm_sigmas_that_cannot_be(count: int) -> None:
    with pytest.raises(ScheduleError, match=f"got {count}, want 1 to 1000"):
        legacy_ddpm_sigmas(SDXL, count=count)


@pytest.mark.parametrize(
    ("sigma_max", "sigma_min", "rho"), [(1.0, 2.0, 7.0), (1.0, 0.0, 7.0), (2.0, 1.0, 0.0)]
)
def test_edm_sigmas_that_cannot_be(sigma_max: float, sigma_min: float, rho: float) -> None:
    with pytest.raises(ScheduleError, match="Karras sigmas: got 5"):
        karras_sigmas(sigma_max=sigma_max, sigma_min=sigma_min, rho=rho, count=5)


def test_ddpm_in_fifty_steps() -> None:
    # diffusers' own tutorial prints these timesteps: leading spacing without an offset.
    config = SchedulerConfig(
        class_name="DDPMScheduler", timestep_spacing="leading", variance_type="fixed_small"
    )
    schedule = make_schedule(config, num_inference_steps=50)
    assert schedule.timesteps.tolist() == list(range(980, -1, -20))
