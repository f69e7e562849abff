"""DDPM: the posterior of the training's own noising, sampled step by step."""

from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import (
    Schedule,
    denoised_from_noise_pred,
    preserved_levels,
    sigma_at,
)
from triptych.sampling.solvers.base import SolverState, SolverStep, drawn_noise
from triptych.types import Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DdpmSolver:
    """Order 1, one evaluation a step, noise at every step but the one at timestep 0.

    Attributes:
        variance: of the noise: the posterior's, which is the smaller, or the beta of the step.

    Source:
        Ho et al. 2020, arXiv:2006.11239, equations 6, 7 and 15. Same numbers as diffusers'
        DDPMScheduler.step: tests/reference/test_solvers_against_diffusers.py.
    """

    variance: Literal["small", "large"] = "small"

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
        """Go to the mean of the posterior, and add its noise.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: there is no noise stream, and the step adds noise.
        """
        alpha, level = preserved_levels(sigma_at(schedule, index))
        alpha_next, level_next = preserved_levels(float(schedule.sigmas[index + 1]))
        kept = (alpha / alpha_next) ** 2
        beta = 1 - kept
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        after = (
            alpha_next * beta / level**2 * denoised
            + np.sqrt(kept) * (level_next / level) ** 2 * latents
        )
        if schedule.timesteps[index] > 0:
            noise, stream = drawn_noise(state, latents.shape)
            # Never quite 0, as in diffusers: the last step above timestep 0 adds 1e-10 of noise.
            small = max((level_next / level) ** 2 * beta, 1e-20)
            after = after + np.sqrt(small if self.variance == "small" else beta) * noise
            state = replace(state, noise=stream)
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)
