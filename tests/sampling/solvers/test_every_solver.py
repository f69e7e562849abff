"""What every solver promises; beside diffusers' numbers in tests/reference."""

import numpy as np
import pytest

from triptych.errors import ScheduleError, UsageError
from triptych.sampling.noise import NoiseStream
from triptych.sampling.samplers import Sampler, make_sampler
from triptych.sampling.schedule import Schedule, preserved_levels, scale_model_input
from triptych.sampling.scheduler_config import scheduler_config
from triptych.sampling.schedulers import SCHEDULERS
from triptych.sampling.solvers.base import SolverState
from triptych.sampling.timestep_spacing import Steps
from triptych.types import Latents

SDXL: dict[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
}
NOISY = ["euler-ancestral", "ddim", "ddpm", "dpmpp-2m-sde", "lcm", "tcd"]
"""Those that add noise, DDIM and TCD at the eta of these tests."""


def sampler_of(name: str, *, prediction_type: str = "epsilon", steps: int = 8) -> Sampler:
    kind = SCHEDULERS[name]
    content = {**SDXL, "prediction_type": prediction_type}
    if kind.algorithm_type is not None:
        content["algorithm_type"] = kind.algorithm_type
    config = scheduler_config(content, class_name=kind.class_name)
    return make_sampler(config, Steps(num_inference_steps=steps), eta=0.5)


def gaussian(seed: int) -> Latents:
    return np.random.default_rng(seed).standard_normal((2, 4, 3, 5)).astype(np.float32)


def true_answer(picture: Latents, latents: Latents, schedule: Schedule, index: int) -> Latents:
    """What a U-Net that knows the picture would answer."""
    alpha, level = preserved_levels(float(schedule.sigmas[index]))
    sample = scale_model_input(latents, schedule, index).astype(np.float64)
    noise = (sample - alpha * picture) / level
    velocity = alpha * noise - level * picture
    answer = noise if schedule.prediction_type == "epsilon" else velocity
    return answer.astype(np.float32)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_who_is_told_the_truth_ends_in_the_picture(name: str, prediction_type: str) -> None:
    if (name, prediction_type) == ("pndm", "v_prediction"):
        pytest.skip("PNDM combines velocities of several levels, which no truth makes equal")
    sampler = sampler_of(name, prediction_type=prediction_type)
    schedule, solver = sampler.schedule, sampler.solver
    picture = gaussian(0)
    latents = gaussian(1) * np.float32(schedule.init_noise_sigma)
    state = solver.init(schedule, NoiseStream(seeds=(3,)))

    for index in range(schedule.num_inference_steps):
        answer = true_answer(picture, latents, schedule, index)
        step = solver.step(latents, answer, schedule, index, state)
        latents, state = step.latents, step.state
        assert latents.dtype == np.float32
        np.testing.assert_allclose(step.denoised, picture, atol=1e-3)

    # TCD ends at the least noise of training, and keeps what is left of the last answer.
    np.testing.assert_allclose(latents, picture, atol=0.15 if name == "tcd" else 1e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_can_be_taken_again(name: str) -> None:
    sampler = sampler_of(name)
    schedule, solver = sampler.schedule, sampler.solver
    latents = gaussian(1) * np.float32(schedule.init_noise_sigma)
    state = solver.init(schedule, NoiseStream(seeds=(3,)))
    for index in range(schedule.num_inference_steps):
        before, answer = latents.copy(), gaussian(index)
        first = solver.step(latents, answer, schedule, index, state)
        again = solver.step(latents, answer, schedule, index, state)
        np.testing.assert_array_equal(first.latents, again.latents)
        np.testing.assert_array_equal(latents, before)
        np.testing.assert_array_equal(answer, gaussian(index))
        latents, state = first.latents, first.state


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("index", [-1, 100])
def test_index_outside_the_schedule(name: str, index: int) -> None:
    sampler = sampler_of(name)
    state = sampler.solver.init(sampler.schedule, NoiseStream(seeds=(3,)))
    with pytest.raises(ScheduleError, match=f"got {index}, want 0 to"):
        sampler.solver.step(gaussian(0), gaussian(1), sampler.schedule, index, state)


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_drawn_from_the_stream_alone(name: str) -> None:
    sampler = sampler_of(name)
    with pytest.raises(UsageError, match="got no noise stream"):
        sampler.solver.step(gaussian(0), gaussian(1), sampler.schedule, 0, SolverState())
    steps = [
        sampler.solver.step(
            gaussian(0),
            gaussian(1),
            sampler.schedule,
            0,
            sampler.solver.init(sampler.schedule, NoiseStream(seeds=(seed,))),
        )
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(steps[0].latents, steps[1].latents)
    assert not np.array_equal(steps[0].latents, steps[2].latents)
    assert steps[0].state.noise == NoiseStream(
        seeds=(1,), words_drawn=136
    )  # the last 16 of 120 anew


@pytest.mark.parametrize("name", set(SCHEDULERS) - set(NOISY))
def test_others_draw_none(name: str) -> None:
    sampler = sampler_of(name)
    state = sampler.solver.init(sampler.schedule)
    step = sampler.solver.step(gaussian(0), gaussian(1), sampler.schedule, 0, state)
    assert step.state.noise is None


@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_without_eta_nothing_is_drawn(name: str) -> None:
    config = scheduler_config(SDXL, class_name=SCHEDULERS[name].class_name)
    sampler = make_sampler(config, Steps(num_inference_steps=4))
    state = sampler.solver.init(sampler.schedule)
    sampler.solver.step(gaussian(0), gaussian(1), sampler.schedule, 0, state)
