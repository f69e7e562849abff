"""DDIM: to a level below by the estimates of picture and noise, with some fresh noise if asked."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import (
    Schedule,
    denoised_from_noise_pred,
    epsilon_from_noise_pred,
    preserved_levels,
    sigma_at,
)
from triptych.sampling.solvers.base import SolverState, SolverStep, drawn_noise
from triptych.types import Array, Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DdimSolver:
    """Order 1, one evaluation a step, deterministic unless `eta` says otherwise.

    Attributes:
        targets: the level that each step goes to. diffusers strides over the training schedule by
            a fixed number of timesteps, which with linspace and trailing spacing is not always the
            level that the next step is told.
        eta: share of DDPM's noise that is added, 0 to 1.

    Source:
        Song et al. 2020, arXiv:2010.02502, equations 12 and 16. Same numbers as diffusers'
        DDIMScheduler.step: tests/reference/test_solvers_against_diffusers.py.
    """

    targets: Array
    eta: float = 0.0

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
        """Go to the step's target. A clipped estimate of x0 does not change that of the noise.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: there is no noise stream, and `eta` is above 0.
        """
        alpha, level = preserved_levels(sigma_at(schedule, index))
        alpha_next, level_next = preserved_levels(float(self.targets[index]))
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        epsilon = epsilon_from_noise_pred(noise_pred, latents, schedule, index)
        variance = (level_next / level) ** 2 * (1 - (alpha / alpha_next) ** 2)
        fresh = self.eta * np.sqrt(variance)
        after = alpha_next * denoised + np.sqrt(level_next**2 - fresh**2) * epsilon
        if self.eta > 0:
            noise, stream = drawn_noise(state, latents.shape)
            after = after + fresh * noise
            state = replace(state, noise=stream)
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)
