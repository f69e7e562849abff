"""DPM-Solver++: exact in the linear part of the ODE or SDE, multistep in the estimates of x0."""

import math
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
from triptych.sampling.weighted_sum import weighted_sum
from triptych.types import Array, Latents, NoisePred

_SHORT_RUN = 15
"""Runs of fewer steps end at lower orders."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DpmMultistepSolver:
    """Order 1 to 3, one evaluation a step; as an ODE, or as an SDE with noise at every step.

    Attributes:
        order: most estimates that one step combines.
        stochastic: the SDE.
        second_order: what the second estimate is multiplied by: the midpoint's or Heun's factor.
        lower_order_final: lower the order at the end of runs of fewer than 15 steps.
        euler_at_final: take the last step at order 1. A step to no noise at all always is.

    Source:
        Lu et al. 2022, arXiv:2211.01095, algorithm 2 and appendices. Same numbers as diffusers'
        DPMSolverMultistepScheduler.step, the SDE's third order included, whose last factor has the
        other sign of the half than the ODE's:
        tests/reference/test_solvers_against_diffusers.py.
    """

    order: Literal[1, 2, 3] = 2
    stochastic: bool = False
    second_order: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """No estimates yet; where the generators stand."""
        return SolverState(noise=noise)

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Combine the last estimates of x0; as many as the order and the place in the run allow.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: the SDE, and there is no noise stream.
        """
        sigma, sigma_next = sigma_at(schedule, index), float(schedule.sigmas[index + 1])
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        estimates = (*state.estimates, denoised)[-self.order :]
        used = estimates[-self._order_at(schedule, index) :]
        left = sigma_next / sigma  # exp(-h), h the step in log of signal over noise
        alpha_next, level_next = preserved_levels(sigma_next)
        level = preserved_levels(sigma)[1]
        kept = level_next / level * (left if self.stochastic else 1)
        levels = schedule.sigmas[index + 1 - len(used) : index + 2]
        after = weighted_sum((kept, latents), (alpha_next, self._gained(used, levels)))
        state = replace(state, estimates=estimates)
        if self.stochastic:
            noise, stream = drawn_noise(state, latents.shape)
            after += level_next * math.sqrt(1 - left**2) * noise
            state = replace(state, noise=stream)
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)

    def _order_at(self, schedule: Schedule, index: int) -> int:
        remaining = schedule.num_inference_steps - index
        lowered = self.lower_order_final and schedule.num_inference_steps < _SHORT_RUN
        ends = self.euler_at_final or lowered or schedule.sigmas[-1] == 0
        if remaining == 1 and ends:
            return 1
        return min(self.order, 2) if remaining == 2 and lowered else self.order

    def _gained(self, estimates: tuple[Array, ...], levels: Array) -> Array:
        """What the estimates add, over the signal's factor at the end of the step.

        Args:
            estimates: of x0, the newest last.
            levels: the sigma of each, and of the end of the step.
        """
        logs = [-math.log(level) if level > 0 else math.inf for level in levels.tolist()]
        h = logs[-1] - logs[-2]
        span = 2 * h if self.stochastic else h
        left = math.exp(-span)
        newest = estimates[-1]
        if len(estimates) == 1:
            return weighted_sum((1 - left, newest))
        reach = h / (logs[-2] - logs[-3])  # the slope is the last difference times this
        heun = (left - 1) / span + 1 if span else 0.0
        if len(estimates) == 2:
            share = reach * ((1 - left) / 2 if self.second_order == "midpoint" else heun)
            return weighted_sum((1 - left + share, newest), (-share, estimates[-2]))
        slope = (newest - estimates[-2]) * reach
        gained: Array = (1 - left) * newest
        earlier = (estimates[-2] - estimates[-3]) * h / (logs[-3] - logs[-4])
        bend = (slope - earlier) * h / (logs[-2] - logs[-4])
        slope = slope + (logs[-2] - logs[-3]) / (logs[-2] - logs[-4]) * (slope - earlier)
        half = -0.5 if self.stochastic else 0.5
        gained += heun * slope
        gained += ((1 - left - span) / span**2 + half if span else 0.0) * bend
        return gained
