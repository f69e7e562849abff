"""One Euler step is a straight line; beside diffusers' numbers in tests/reference."""

import numpy as np
import pytest

from triptych.errors import ScheduleError
from triptych.sampling.schedule import Schedule
from triptych.sampling.solvers.base import SolverState
from triptych.sampling.solvers.euler import EulerSolver
from triptych.types import Latents

SCHEDULE = Schedule(
    timesteps=np.array([900, 500, 100], np.float32),
    sigmas=np.array([8, 2, 0.5, 0], np.float32),
    init_noise_sigma=8.0,
    prediction_type="epsilon",
)


def gaussian(seed: int) -> Latents:
    return np.random.default_rng(seed).standard_normal((2, 4, 3, 5)).astype(np.float32)


def step(latents: Latents, noise_pred: Latents, index: int) -> Latents:
    solver = EulerSolver()
    return solver.step(latents, noise_pred, SCHEDULE, index, solver.init(SCHEDULE)).latents


def test_a_step_keeps_the_noise_and_lowers_its_level() -> None:
    picture, noise = gaussian(0), gaussian(1)

    for index in range(3):
        after = step(picture + SCHEDULE.sigmas[index] * noise, noise, index)
        np.testing.assert_allclose(after, picture + SCHEDULE.sigmas[index + 1] * noise, atol=2e-6)
        assert after.dtype == np.float32


def test_a_step_takes_off_the_noise_between_two_levels() -> None:
    after = step(np.full((1, 4, 1, 1), 10, np.float32), np.ones((1, 4, 1, 1), np.float32), 0)
    np.testing.assert_array_equal(after, np.full((1, 4, 1, 1), 4, np.float32))  # 10 - (8 - 2)


def test_the_last_step_ends_in_the_estimate() -> None:
    taken = EulerSolver().step(gaussian(0), gaussian(1), SCHEDULE, 2, SolverState())
    np.testing.assert_allclose(taken.latents, taken.denoised, atol=1e-6)


def test_nothing_is_remembered_and_nothing_is_changed() -> None:
    latents, noise_pred = gaussian(0), gaussian(1)
    solver = EulerSolver()

    assert solver.init(SCHEDULE) == SolverState()
    first = solver.step(latents, noise_pred, SCHEDULE, 1, SolverState())
    second = solver.step(latents, noise_pred, SCHEDULE, 1, SolverState())

    assert first.state == SolverState()
    np.testing.assert_array_equal(first.latents, second.latents)
    np.testing.assert_array_equal(latents, gaussian(0))
    np.testing.assert_array_equal(noise_pred, gaussian(1))


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_index_outside_the_schedule(index: int) -> None:
    with pytest.raises(ScheduleError, match=f"got {index}, want 0 to 2"):
        step(gaussian(0), gaussian(1), index)
