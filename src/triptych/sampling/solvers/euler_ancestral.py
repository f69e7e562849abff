"""Euler's method that goes a little too far down and adds fresh noise back."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import Schedule, denoised_from_noise_pred, sigma_at
from triptych.sampling.solvers.base import SolverState, SolverStep, drawn_noise
from triptych.types import Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EulerAncestralSolver:
    """Order 1, one evaluation a step, noise at every step.

    Source:
        k-diffusion, sample_euler_ancestral with eta = 1. Same numbers as diffusers'
        EulerAncestralDiscreteScheduler.step: tests/reference/test_solvers_against_diffusers.py.
    """

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """Only where the generators stand."""
        return SolverState(noise=noise)

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Step down to `down`, then up by noise to the next level: down^2 + up^2 = sigma_next^2.

        The last step draws its noise too, and adds none of it.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: there is no noise stream.
        """
        sigma, sigma_next = sigma_at(schedule, index), float(schedule.sigmas[index + 1])
        up = np.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        down = np.sqrt(sigma_next**2 - up**2)
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        noise, stream = drawn_noise(state, latents.shape)
        derivative = (latents.astype(np.float64) - denoised) / sigma
        after = latents + derivative * (down - sigma) + noise * up
        return SolverStep(
            latents=after.astype(np.float32),
            denoised=denoised,
            state=replace(state, noise=stream),
        )
