"""Which steps a run takes: the seeds' arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.sampling.run_part import RunPart, part_between, part_by_strength, whole_run
from triptych.sampling.schedule import Schedule


def schedule(steps: int, *, evaluations_per_step: int = 1) -> Schedule:
    """SDXL's timesteps: leading, from 1."""
    timesteps = np.arange(steps)[::-1] * (1000 // steps) + 1
    evaluations = steps if evaluations_per_step == 1 else 2 * steps - 1
    repeated = np.repeat(timesteps, evaluations_per_step)[-evaluations:]
    return Schedule(
        timesteps=repeated.astype(np.float32),
        sigmas=np.linspace(10, 0, evaluations + 1).astype(np.float32),
        init_noise_sigma=1.0,
        prediction_type="epsilon",
        evaluations_per_step=evaluations_per_step,
    )


@pytest.mark.parametrize(
    ("steps", "strength", "first"), [(50, 0.3, 35), (50, 1.0, 0), (2, 0.5, 1), (10, 0.99, 1)]
)
def test_strength_is_a_share_of_the_steps(steps: int, strength: float, first: int) -> None:
    part = part_by_strength(schedule(steps), num_inference_steps=steps, strength=strength)
    assert part == RunPart(first=first, stop=steps)


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.5), (10, 0.0), (10, 0.05)])
def test_a_strength_that_leaves_no_step(steps: int, strength: float) -> None:
    with pytest.raises(UsageError, match="leaves none"):
        part_by_strength(schedule(steps), num_inference_steps=steps, strength=strength)


def test_strength_counts_steps_and_not_evaluations() -> None:
    part = part_by_strength(
        schedule(10, evaluations_per_step=2), num_inference_steps=10, strength=0.5
    )
    assert part == RunPart(first=10, stop=19)


def test_forty_steps_are_split_into_thirty_two_and_eight() -> None:
    made = schedule(40)
    base = part_between(whole_run(made), made, denoising_start=None, denoising_end=0.8)
    refiner = part_between(whole_run(made), made, denoising_start=0.8, denoising_end=None)
    assert (base.num_steps, refiner.num_steps) == (32, 8)
    assert base.stop == refiner.first


@given(steps=st.integers(2, 100), split=st.floats(0.05, 0.95))
def test_two_parts_of_a_run_are_the_whole(steps: int, split: float) -> None:
    made = schedule(steps)
    whole = whole_run(made)
    try:
        first = part_between(whole, made, denoising_start=None, denoising_end=split)
        second = part_between(whole, made, denoising_start=split, denoising_end=None)
    except UsageError:
        return  # one of the two has nothing to do
    assert (first.first, second.stop) == (whole.first, whole.stop)
    assert first.stop == second.first
