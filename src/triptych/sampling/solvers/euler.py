"""Euler's method, SDXL's own solver."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import Schedule, denoised_from_noise_pred, sigma_at
from triptych.sampling.solvers.base import SolverState, SolverStep
from triptych.sampling.weighted_sum import weighted_sum
from triptych.types import Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EulerSolver:
    """Order 1, one evaluation a step, deterministic, no memory.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 2 with S_churn = 0.
        Same numbers as diffusers' EulerDiscreteScheduler.step:
        tests/reference/test_solvers_against_diffusers.py.
    """

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """Nothing to remember, and no noise to draw."""
        return SolverState()

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Move the latents from one noise level to the next along a straight line.

        One Euler step of the probability-flow ODE dx/dsigma = (x - denoised) / sigma. No noise is
        added. Computed in float64 and returned in float32.

        Args:
            latents: x at `schedule.sigmas[index]`, of exploding variance.
            noise_pred: the U-Net's answer.
            schedule: noise levels, descending.
            index: the step, 0 <= index < num_inference_steps.
            state: nothing in it is used.

        Raises:
            ScheduleError: `index` is outside the schedule.
        """
        sigma, sigma_next = sigma_at(schedule, index), float(schedule.sigmas[index + 1])
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        # Along (latents - denoised) / sigma for sigma_next - sigma, brought to one factor each.
        kept = sigma_next / sigma
        after = weighted_sum((kept, latents), (1 - kept, denoised))
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)
