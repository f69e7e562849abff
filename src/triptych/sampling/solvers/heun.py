"""Heun's method: Euler's step, tried and then taken again with the slope at both its ends."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import Schedule, denoised_from_noise_pred, sigma_at
from triptych.sampling.solvers.base import SolverState, SolverStep
from triptych.types import Latents, NoisePred


def heun_schedule(schedule: Schedule) -> Schedule:
    """Every level but the first and the end twice: the second time at the end of a trial step.

    The last step, to no noise at all, is Euler's: there is no slope there.
    """
    sigmas = schedule.sigmas
    return Schedule(
        timesteps=np.concatenate([schedule.timesteps[:1], np.repeat(schedule.timesteps[1:], 2)]),
        sigmas=np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), sigmas[-1:]]),
        init_noise_sigma=schedule.init_noise_sigma,
        prediction_type=schedule.prediction_type,
        clip_range=schedule.clip_range,
        num_train_timesteps=schedule.num_train_timesteps,
        evaluations_per_step=2,
    )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HeunSolver:
    """Order 2, two evaluations for each level, deterministic.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 1. Same numbers as diffusers'
        HeunDiscreteScheduler.step: tests/reference/test_solvers_against_diffusers.py.
    """

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """No trial step has been taken."""
        return SolverState()

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Try Euler's step; at the next evaluation, take it again with the mean of both slopes.

        Raises:
            ScheduleError: `index` is outside the schedule.
        """
        sigma, sigma_next = sigma_at(schedule, index), float(schedule.sigmas[index + 1])
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        derivative = (latents.astype(np.float64) - denoised) / sigma
        if state.anchor is None:
            after = latents + derivative * (sigma_next - sigma)
            state = SolverState(anchor=latents, estimates=(derivative,))
        else:
            length = sigma - float(schedule.sigmas[index - 1])
            after = state.anchor + (state.estimates[0] + derivative) / 2 * length
            state = SolverState()
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)
