"""One Euler step is a straight line; beside diffusers' numbers in tests/reference."""

import numpy as np
import pytest

from triptych.errors import ScheduleError
from triptych.sampling.schedule import Schedule
from triptych.sampling.solvers import solver_for
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


def test_a_step_keeps_the_noise_and_lowers_its_level() -> None:
    picture, noise = gaussian(0), gaussian(1)

    for index in range(3):
        latents = picture + SCHEDULE.sigmas[index] * noise
        after, _ = EulerSolver().step(latents, picture, SCHEDULE, index, None)
        np.testing.assert_allclose(after, picture + SCHEDULE.sigmas[index + 1] * noise, atol=1e-6)
        assert after.dtype == np.float32


def test_a_step_is_the_share_of_the_way_that_sigma_falls() -> None:
    latents, denoised = np.full((1, 4, 1, 1), 10, np.float32), np.zeros((1, 4, 1, 1))
    after, _ = EulerSolver().step(latents, denoised, SCHEDULE, 0, None)
    np.testing.assert_array_equal(after, np.full((1, 4, 1, 1), 2.5, np.float32))  # 10 * 2 / 8


def test_the_last_step_ends_in_the_estimate() -> None:
    after, _ = EulerSolver().step(gaussian(0), gaussian(1), SCHEDULE, 2, None)
    np.testing.assert_array_equal(after, gaussian(1))


def test_nothing_is_remembered_and_nothing_is_changed() -> None:
    latents, denoised = gaussian(0), gaussian(1)
    solver = EulerSolver()

    assert solver.init(SCHEDULE) is None
    first, state = solver.step(latents, denoised, SCHEDULE, 1, None)
    second, _ = solver.step(latents, denoised, SCHEDULE, 1, None)

    assert state is None
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(latents, gaussian(0))
    np.testing.assert_array_equal(denoised, gaussian(1))


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_index_outside_the_schedule(index: int) -> None:
    with pytest.raises(ScheduleError, match=f"got {index}, want 0 to 2"):
        EulerSolver().step(gaussian(0), gaussian(1), SCHEDULE, index, None)


def test_solver_is_found_by_diffusers_class() -> None:
    assert isinstance(solver_for("EulerDiscreteScheduler"), EulerSolver)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "", "euler"])
def test_unknown_solver_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ScheduleError, match=f"got '{name}', want one of EulerDiscreteScheduler"):
        solver_for(name)
