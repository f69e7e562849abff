"""Schedules and Euler's steps beside diffusers' EulerDiscreteScheduler, number by number."""

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ScheduleError
from triptych.parity.metrics import rel_l2
from triptych.sampling.schedule import (
    Schedule,
    SchedulerConfig,
    denoised_from_noise_pred,
    make_schedule,
    read_scheduler_config,
    scale_model_input,
)
from triptych.sampling.solvers.euler import EulerSolver
from triptych.types import Array

# diffusers' set_timesteps gives a torch tensor to numpy.array, whose protocol torch follows in its
# older form.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

# diffusers rounds every beta and every product to float32; ours is float64 until the end. Measured
# over all of these configs and 1 to 60 steps: sigmas are at most 1.3e-5 apart, at the lowest, 0.03,
# where 1 - abar is a small difference, and 3.5e-6 above 0.1; log_linear spreads the error at the
# lowest over the others. Sigma is in units of the latents, where 1e-6 is nothing.
SIGMA_RTOL, SIGMA_ATOL = 1e-5, 1e-6
STEP_REL_L2 = 1e-5  # measured: 4.3e-6, after two steps of log_linear

SDXL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}

configs = st.fixed_dictionaries(
    {
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "steps_offset": st.sampled_from([0, 1]),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear"]),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
        "interpolation_type": st.sampled_from(["linear", "log_linear"]),
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
    }
)
SPACINGS = ["leading", "linspace", "trailing"]
PREDICTION_TYPES = ["epsilon", "v_prediction"]


def both(
    config: dict[str, object], num_inference_steps: int
) -> tuple[Schedule, EulerDiscreteScheduler]:
    scheduler = EulerDiscreteScheduler(**config)
    scheduler.set_timesteps(num_inference_steps)
    scheduler.set_begin_index(0)  # as the pipeline does
    ours = SchedulerConfig(**config)  # type: ignore[arg-type]  # checked when the tests run
    return make_schedule(ours, num_inference_steps=num_inference_steps), scheduler


def assert_same_schedule(schedule: Schedule, scheduler: EulerDiscreteScheduler) -> None:
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    # With log_linear interpolation diffusers appends one more sigma, which no step reaches.
    reached = scheduler.sigmas[: len(scheduler.timesteps) + 1].numpy()
    np.testing.assert_allclose(schedule.sigmas, reached, rtol=SIGMA_RTOL, atol=SIGMA_ATOL)
    assert schedule.sigmas.dtype == np.float32
    assert schedule.init_noise_sigma == pytest.approx(
        float(scheduler.init_noise_sigma), rel=SIGMA_RTOL, abs=SIGMA_ATOL
    )


def assert_same_steps(schedule: Schedule, scheduler: EulerDiscreteScheduler, *, seed: int) -> None:
    """Run both from the same latents on the same random model outputs; neither sees the other."""
    random = np.random.default_rng(seed)
    shape = (1, 4, 9, 7)
    # Data of unit variance under noise: what real latents are at any noise level.
    scale = np.sqrt(schedule.sigmas[0] ** 2 + 1)
    latents = (scale * random.standard_normal(shape)).astype(np.float32)
    sample = torch.from_numpy(latents.copy())
    solver = EulerSolver()
    state = solver.init(schedule)
    for index, timestep in enumerate(scheduler.timesteps):
        step = f"step {index} of {schedule.num_inference_steps}, timestep {timestep:g}: "
        scaled = scheduler.scale_model_input(sample, timestep).numpy()
        assert_close(scale_model_input(latents, schedule, index), scaled, step + "model input")
        model_output = random.standard_normal(shape).astype(np.float32)
        denoised = denoised_from_noise_pred(model_output, latents, schedule, index)
        latents, state = solver.step(latents, denoised, schedule, index, state)
        expected = scheduler.step(torch.from_numpy(model_output), timestep, sample)
        sample = expected.prev_sample
        original = expected.pred_original_sample.numpy()
        assert_close(denoised.astype(np.float32), original, step + "pred_original_sample")
        assert_close(latents, sample.numpy(), step + "prev_sample")


def assert_close(actual: Array, expected: Array, where: str) -> None:
    assert actual.dtype == np.float32, where
    error = rel_l2(actual, expected)
    assert error <= STEP_REL_L2, f"{where}: relative L2 {error:.1e} is over {STEP_REL_L2:.0e}"


@pytest.mark.slow
@given(config=configs, num_inference_steps=st.integers(1, 60), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_config_and_number_of_steps(
    config: dict[str, object], num_inference_steps: int, seed: int
) -> None:
    schedule, scheduler = both({**SDXL_BETAS, **config}, num_inference_steps)
    assert_same_schedule(schedule, scheduler)
    assert_same_steps(schedule, scheduler, seed=seed)


@pytest.mark.parametrize("num_inference_steps", [1, 4, 20, 50])
@pytest.mark.parametrize("timestep_spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_sdxl_betas(timestep_spacing: str, prediction_type: str, num_inference_steps: int) -> None:
    config: dict[str, object] = {
        **SDXL_BETAS,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": timestep_spacing,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    schedule, scheduler = both(config, num_inference_steps)
    assert_same_schedule(schedule, scheduler)
    assert_same_steps(schedule, scheduler, seed=num_inference_steps)


@pytest.mark.parametrize("num_inference_steps", [1, 4, 20, 50])
def test_an_empty_config_means_diffusers_defaults(num_inference_steps: int) -> None:
    schedule, scheduler = both({}, num_inference_steps)
    # Betas from 1e-4: the lowest sigma is 0.01, and float32 leaves 1 - abar fewer digits there.
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    np.testing.assert_allclose(schedule.sigmas, scheduler.sigmas.numpy(), rtol=1e-5, atol=2e-6)
    assert_same_steps(schedule, scheduler, seed=num_inference_steps)


@pytest.mark.parametrize("timestep_spacing", SPACINGS)
def test_cosine_betas(timestep_spacing: str) -> None:
    # No published SDXL has them. Sigmas reach 20000, where float32 betas decide the sixth digit.
    config: dict[str, object] = {
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": timestep_spacing,
    }
    schedule, scheduler = both(config, 20)
    np.testing.assert_array_equal(schedule.timesteps, scheduler.timesteps.numpy())
    np.testing.assert_allclose(schedule.sigmas, scheduler.sigmas.numpy(), rtol=1e-5, atol=3e-6)


def test_trained_betas_replace_the_schedule() -> None:
    betas = tuple(float(beta) for beta in np.geomspace(1e-3, 2e-2, 1000))
    schedule, scheduler = both({"trained_betas": betas, "timestep_spacing": "leading"}, 20)
    assert_same_schedule(schedule, scheduler)
    assert_same_steps(schedule, scheduler, seed=0)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**SDXL_BETAS, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"},
        {"steps_offset": 1, "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
        {"interpolation_type": "log_linear", "timestep_spacing": "trailing"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500, "sigma_min": 0.1},
        {"use_karras_sigmas": True, "rescale_betas_zero_snr": True},
        {"use_exponential_sigmas": True, "timestep_type": "continuous"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ],
)
def test_what_diffusers_saves_is_read_as_it_was(config: dict[str, object], tmp_path: Path) -> None:
    scheduler = EulerDiscreteScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    ours = asdict(read_scheduler_config(tmp_path / "scheduler_config.json"))
    assert ours.pop("class_name") == "EulerDiscreteScheduler"
    betas = ours.pop("trained_betas")
    assert (betas and list(betas)) == scheduler.config.trained_betas
    assert ours == {name: scheduler.config[name] for name in ours}


def test_every_default_is_diffusers_own() -> None:
    defaults = EulerDiscreteScheduler().config
    ours = SchedulerConfig()
    names = {field.name for field in fields(SchedulerConfig)} - {"class_name"}
    assert {name: getattr(ours, name) for name in names} == {name: defaults[name] for name in names}
    # Only Karras, exponential and beta spacing read these two, and those are refused.
    unread = {name for name in defaults if not name.startswith("_")} - names
    assert unread == {"sigma_min", "sigma_max"}


@pytest.mark.parametrize(
    "config",
    [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"rescale_betas_zero_snr": True},
        {"timestep_type": "continuous"},
        {"prediction_type": "sample"},
        {"prediction_type": "original_sample"},
    ],
)
def test_what_diffusers_can_and_triptych_cannot_is_refused(
    config: dict[str, object], tmp_path: Path
) -> None:
    EulerDiscreteScheduler(**config).save_pretrained(tmp_path)
    with pytest.raises(ScheduleError, match=next(iter(config))):
        make_schedule(
            read_scheduler_config(tmp_path / "scheduler_config.json"), num_inference_steps=4
        )
