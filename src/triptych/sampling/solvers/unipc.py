"""UniPC: a multistep predictor, and a corrector that mends a step by the evaluation after it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import (
    Schedule,
    denoised_from_noise_pred,
    epsilon_from_noise_pred,
    preserved_levels,
    sigma_at,
)
from triptych.sampling.solvers.base import SolverState, SolverStep
from triptych.sampling.weighted_sum import weighted_sum
from triptych.types import Array, Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UniPcSolver:
    """Order 1 to 3 and one more by correcting, one evaluation a step, deterministic.

    The latents that a callback sees are predicted; they are corrected when the next step begins.

    Attributes:
        order: most estimates that a prediction combines.
        scale: B(h), what differences are multiplied by: h ("bh1") or exp(h) - 1 ("bh2").
        predict_x0: step from estimates of x0; otherwise of the noise.
        lower_order_final: lower the order towards the end.
        uncorrected: steps after which nothing is corrected.

    Source:
        Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2, with varying coefficients. Same
        numbers as diffusers' UniPCMultistepScheduler.step:
        tests/reference/test_solvers_against_diffusers.py.
    """

    order: Literal[1, 2, 3] = 2
    scale: Literal["bh1", "bh2"] = "bh2"
    predict_x0: bool = True
    lower_order_final: bool = True
    uncorrected: tuple[int, ...] = ()

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """No estimates, and nothing to correct."""
        return SolverState()

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Correct the step before by this evaluation, then predict this one.

        Raises:
            ScheduleError: `index` is outside the schedule.
        """
        sigma_at(schedule, index)
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        newest = denoised
        if not self.predict_x0:
            newest = epsilon_from_noise_pred(noise_pred, latents, schedule, index)
        x = latents.astype(np.float64)
        if state.anchor is not None and index - 1 not in self.uncorrected:
            order = self._order_at(schedule, index - 1, len(state.estimates) - 1)
            used = state.estimates[-order:]
            x = self._moved(state.anchor, used, schedule, index - 1, corrected_by=newest)
        estimates = (*state.estimates, newest)[-self.order :]
        order = self._order_at(schedule, index, len(state.estimates))
        after = self._moved(x, estimates[-order:], schedule, index)
        return SolverStep(
            latents=after.astype(np.float32),
            denoised=denoised,
            state=SolverState(estimates=estimates, anchor=x),
        )

    def _order_at(self, schedule: Schedule, index: int, earlier: int) -> int:
        """The order of a step that has so many estimates before its own."""
        remaining = schedule.num_inference_steps - index
        order = min(self.order, remaining) if self.lower_order_final else self.order
        return min(order, earlier + 1)

    def _moved(
        self,
        x: Array,
        estimates: tuple[Array, ...],
        schedule: Schedule,
        index: int,
        *,
        corrected_by: Array | None = None,
    ) -> Array:
        """The latents after step `index`, from the estimates at it and before it.

        Args:
            x: before the step.
            estimates: the newest, at the step itself, last.
            schedule: the run's.
            index: the step.
            corrected_by: the estimate at the end of the step, where it is known.
        """
        levels = schedule.sigmas[index + 1 - len(estimates) : index + 2].tolist()
        logs = [-math.log(level) if level > 0 else math.inf for level in levels]
        h = logs[-1] - logs[-2]
        alpha, level = preserved_levels(levels[-2])
        alpha_next, level_next = preserved_levels(levels[-1])
        if self.predict_x0:
            kept, gain, signed = level_next / level, alpha_next, -h
        else:
            kept, gain, signed = alpha_next / alpha, level_next, h
        grown = math.expm1(signed)
        newest = estimates[-1]
        places = [(log - logs[-2]) / h for log in logs[-3::-1]]
        others = estimates[-2::-1]
        if corrected_by is not None:
            places, others = [*places, 1.0], (*others, corrected_by)
        if not places:
            return weighted_sum((kept, x), (-gain * grown, newest))
        scale = signed if self.scale == "bh1" else grown
        weights = _weights(places, signed, scale, halved=len(places) == 1)
        # Each other estimate counts by its difference from the newest, over their distance.
        shares = [
            gain * scale * weight / place for weight, place in zip(weights, places, strict=True)
        ]
        return weighted_sum(
            (kept, x),
            (sum(shares) - gain * grown, newest),
            *((-share, other) for share, other in zip(shares, others, strict=True)),
        )


def _weights(places: Sequence[float], h: float, scale: float, *, halved: bool) -> list[float]:
    """What each difference counts for, so that the orders match.

    Args:
        places: of the estimates, in steps after the newest.
        h: the signed length of the step.
        scale: B(h).
        halved: a single difference counts one half, whatever B is.

    Source: equation 5 of the paper; diffusers halves single differences.
    """
    if halved:
        return [0.5]
    phi, factorial = math.expm1(h) / h - 1, 1
    wanted = []
    for power in range(len(places)):
        wanted.append(phi * factorial / scale)
        factorial *= power + 2
        phi = phi / h - 1 / factorial
    powers = np.vander(np.array(places), increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, np.array(wanted))]
