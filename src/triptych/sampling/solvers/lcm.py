"""Latent consistency models: straight to x0, then back up to the next level with fresh noise."""

from dataclasses import dataclass, replace
from typing import final

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

_SIGMA_DATA = 0.5
"""Spread of the data in the boundary condition. Source: arXiv:2310.04378, section 4.1."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LcmSolver:
    """One evaluation a step, noise after every step but the last.

    Attributes:
        timestep_scaling: how fast the boundary condition lets go of its input.

    Source:
        Luo et al. 2023, arXiv:2310.04378, algorithm 3 and equation 9. Same numbers as diffusers'
        LCMScheduler.step: tests/reference/test_solvers_against_diffusers.py.
    """

    timestep_scaling: float = 10.0

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
        """Estimate x0 by the consistency function; noise it to the next level.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: there is no noise stream, and it is not the last step.
        """
        sigma_at(schedule, index)
        scaled = float(schedule.timesteps[index]) * self.timestep_scaling
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / (scaled**2 + _SIGMA_DATA**2) ** 0.5
        estimate = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        denoised = out * estimate + skip * latents.astype(np.float64)
        after = denoised
        if index < schedule.num_inference_steps - 1:
            alpha_next, level_next = preserved_levels(float(schedule.sigmas[index + 1]))
            noise, stream = drawn_noise(state, latents.shape)
            after = alpha_next * denoised + level_next * noise
            state = replace(state, noise=stream)
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)
