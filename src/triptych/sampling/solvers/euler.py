"""Euler's method, SDXL's own solver."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.schedule import Schedule
from triptych.sampling.solvers.base import SolverState
from triptych.types import Array, Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EulerSolver:
    """Order 1, one evaluation a step, deterministic, no memory.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 2 with S_churn = 0.
        Same numbers as diffusers' EulerDiscreteScheduler.step:
        tests/reference/test_schedule_against_diffusers.py.
    """

    def init(self, schedule: Schedule) -> SolverState:  # noqa: ARG002  the Protocol's
        """Nothing to remember."""
        return None

    def step(
        self,
        latents: Latents,
        denoised: Array,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> tuple[Latents, SolverState]:
        """Move the latents from one noise level to the next along a straight line.

        One Euler step of the probability-flow ODE dx/dsigma = (x - denoised) / sigma. No noise is
        added. Computed in float64 and returned in float32.

        Args:
            latents: x at `schedule.sigmas[index]`, unscaled.
            denoised: the model's estimate of x0 at that level.
            schedule: noise levels, descending.
            index: the step, 0 <= index < num_inference_steps.
            state: None; Euler remembers nothing.

        Returns:
            x at `schedule.sigmas[index + 1]`, shaped as `latents`, and None.

        Raises:
            ScheduleError: `index` is outside the schedule.
        """
        if not 0 <= index < schedule.num_inference_steps:
            raise ScheduleError(
                f"step index: got {index}, want 0 to {schedule.num_inference_steps - 1}."
            )
        sigma, sigma_next = (float(level) for level in schedule.sigmas[index : index + 2])
        x = latents.astype(np.float64)
        derivative = (x - denoised) / sigma
        return (x + derivative * (sigma_next - sigma)).astype(np.float32), state
