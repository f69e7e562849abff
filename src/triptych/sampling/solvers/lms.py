"""Linear multistep: a polynomial through the slopes so far, integrated over the next step."""

import functools
from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import Schedule, denoised_from_noise_pred, sigma_at
from triptych.sampling.solvers.base import SolverState, SolverStep
from triptych.sampling.weighted_sum import weighted_sum
from triptych.types import Array, Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LmsSolver:
    """Adams and Bashforth's method in sigma: one evaluation a step, deterministic.

    Attributes:
        order: how many slopes are remembered; diffusers' pipelines use 4.

    Source:
        k-diffusion, sample_lms. Same numbers as diffusers' LMSDiscreteScheduler.step, which
        integrates by scipy: tests/reference/test_solvers_against_diffusers.py.
    """

    order: int = 4

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """No slopes yet."""
        return SolverState()

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Go along the polynomial through the last slopes, at most `order` of them.

        The order grows with the slopes there are, so that a run may begin anywhere.

        Raises:
            ScheduleError: `index` is outside the schedule.
        """
        sigma = sigma_at(schedule, index)
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        derivative = (latents.astype(np.float64) - denoised) / sigma
        derivatives = (*state.estimates, derivative)[-self.order :]
        levels = schedule.sigmas[index + 1 - len(derivatives) : index + 2].astype(np.float64)
        after = weighted_sum((1.0, latents), *zip(_weights(levels), derivatives, strict=True))
        return SolverStep(
            latents=after.astype(np.float32),
            denoised=denoised,
            state=SolverState(estimates=derivatives),
        )


@functools.cache
def _quadrature(degree: int) -> tuple[Array, Array]:
    points, shares = np.polynomial.legendre.leggauss(degree)
    return points, shares


def _weights(levels: np.ndarray) -> list[float]:
    """The integral of each Lagrange polynomial over the last interval of `levels`.

    Args:
        levels: where the slopes were taken, and the end of the step.

    Source: Gauss-Legendre quadrature, exact for these degrees.
    """
    *nodes, start, end = (float(level) for level in levels)
    nodes = [*nodes, start]
    points, shares = _quadrature(len(nodes))
    middle, half = (start + end) / 2, (end - start) / 2
    at = middle + half * points
    weights = []
    for own in range(len(nodes)):
        basis = np.ones_like(at)
        for other in range(len(nodes)):
            if other != own:
                basis = basis * (at - nodes[other]) / (nodes[own] - nodes[other])
        weights.append(float(half * (shares * basis).sum()))
    return weights
