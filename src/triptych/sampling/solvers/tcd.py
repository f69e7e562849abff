"""Trajectory consistency distillation: down past the next level, then back up with fresh noise."""

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
class TcdSolver:
    """One evaluation a step; noise after every step but the last, where `eta` is above 0.

    Attributes:
        targets: the level that each step goes down to before noise is added.
        eta: the paper's gamma, 0 (no noise) to 1 (all the way down). The targets follow from it.

    Source:
        Zheng et al. 2024, arXiv:2402.19159, algorithm 4. Same numbers as diffusers'
        TCDScheduler.step: tests/reference/test_solvers_against_diffusers.py.
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
        """Go down to the step's target, then up to the next level.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: there is no noise stream, and the step adds noise.
        """
        sigma_at(schedule, index)
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        epsilon = epsilon_from_noise_pred(noise_pred, latents, schedule, index)
        alpha, level = preserved_levels(float(self.targets[index]))
        after = alpha * denoised + level * epsilon
        if self.eta > 0 and index < schedule.num_inference_steps - 1:
            alpha_next = preserved_levels(float(schedule.sigmas[index + 1]))[0]
            kept = (alpha_next / alpha) ** 2
            noise, stream = drawn_noise(state, latents.shape)
            after = np.sqrt(kept) * after + np.sqrt(1 - kept) * noise
            state = replace(state, noise=stream)
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)
