"""PNDM: linear multistep on predictions, moved from level to level along DDIM's curve."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import Schedule, denoised_from_noise_pred, sigma_at
from triptych.sampling.scheduler_config import PredictionType
from triptych.sampling.solvers.base import SolverState, SolverStep
from triptych.sampling.weighted_sum import weighted_sum
from triptych.types import Array, Latents, NoisePred

NUM_RUNGE_KUTTA_STEPS = 12
"""Evaluations of the Runge-Kutta start: four for each of three steps."""

_ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([-1, 3]) / 2,
    np.array([5, -16, 23]) / 12,
    np.array([-9, 37, -59, 55]) / 24,
)
"""Weights of one to four predictions, the newest last."""


def pndm_timesteps(spaced: Array, *, stride: int, skip_prk_steps: bool) -> Array:
    """Every evaluation of a run, from the spaced timesteps, descending.

    Without the Runge-Kutta start the second timestep comes twice: the first step is tried and then
    taken again.

    Source: diffusers 0.39 scheduling_pndm.py, set_timesteps.
    """
    if skip_prk_steps:
        return np.concatenate([spaced[:1], spaced[1:2], spaced[1:]])
    begun = spaced[:4][::-1]
    halves = (np.repeat(begun, 2) + np.tile([0, stride // 2], len(begun)))[:-1]
    return np.concatenate([np.repeat(halves, 2)[1:-1][::-1], spaced[3:]])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PndmSolver:
    """Order 4 once it has four predictions, one evaluation a step but at the start.

    Attributes:
        signal: abar of every training timestep.
        final_signal: abar after the last step.
        stride: training timesteps that a whole step goes down.
        num_runge_kutta_steps: evaluations of the Runge-Kutta start, 0 or 12.

    Source:
        Liu et al. 2022, arXiv:2202.09778, equations 9 to 13. Same numbers as diffusers'
        PNDMScheduler.step: tests/reference/test_solvers_against_diffusers.py.
    """

    signal: Array
    final_signal: float
    stride: int
    num_runge_kutta_steps: int = 0

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """No predictions yet."""
        return SolverState()

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Combine the predictions so far, and move the latents by the combination.

        Raises:
            ScheduleError: `index` is outside the schedule, or a run begins inside the Runge-Kutta
                start, whose timesteps mean nothing by themselves.
        """
        sigma_at(schedule, index)
        if 0 < index < self.num_runge_kutta_steps and not state.estimates:
            raise ScheduleError(
                f"pndm: got a run that begins at evaluation {index}, inside the Runge-Kutta start, "
                "want one from the beginning. Set skip_prk_steps to true in scheduler_config.json, "
                "or take another scheduler."
            )
        prediction = noise_pred.astype(np.float64)
        if index < self.num_runge_kutta_steps:
            after, state = self._runge_kutta(latents, prediction, schedule, index, state)
        else:
            after, state = self._multistep(latents, prediction, schedule, index, state)
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        return SolverStep(latents=after.astype(np.float32), denoised=denoised, state=state)

    def _runge_kutta(
        self,
        latents: Latents,
        prediction: Array,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> tuple[Array, SolverState]:
        """One of four evaluations; all start from the first one's latents."""
        stage = index % 4
        origin = int(schedule.timesteps[index - stage])
        target = int(schedule.timesteps[index]) - (0 if stage % 2 else self.stride // 2)
        anchor = latents if state.anchor is None else state.anchor
        kept = (*state.estimates, prediction)
        if stage < 3:
            state = SolverState(estimates=kept, anchor=anchor)
        else:
            first, second, third, fourth = kept[-4:]
            prediction = first / 6 + second / 3 + third / 3 + fourth / 6
            state = SolverState(estimates=kept[:-3])  # of the four, the first is remembered
        return self._moved(anchor, prediction, schedule.prediction_type, origin, target), state

    def _multistep(
        self,
        latents: Latents,
        prediction: Array,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> tuple[Array, SolverState]:
        """Adams and Bashforth's combination of the last four predictions, or of fewer."""
        timestep = int(schedule.timesteps[index])
        if state.anchor is not None:  # the first step, taken again with the mean of both ends
            mean = (prediction + state.estimates[-1]) / 2
            origin, target = timestep + self.stride, timestep
            after = self._moved(state.anchor, mean, schedule.prediction_type, origin, target)
            return after, SolverState(estimates=state.estimates)
        kept = (*state.estimates, prediction)[-4:]
        after = self._moved(
            latents, _combined(kept), schedule.prediction_type, timestep, timestep - self.stride
        )
        return after, SolverState(estimates=kept, anchor=latents if len(kept) == 1 else None)

    def _moved(
        self,
        latents: Latents,
        prediction: Array,
        prediction_type: PredictionType,
        origin: int,
        target: int,
    ) -> Array:
        """Latents taken from one training timestep to another. Source: equation 11."""
        here = float(self.signal[origin])
        there = float(self.signal[target]) if target >= 0 else self.final_signal
        x = latents.astype(np.float64)
        if prediction_type == "v_prediction":
            prediction = here**0.5 * prediction + (1 - here) ** 0.5 * x
        length = here * (1 - there) ** 0.5 + (here * (1 - here) * there) ** 0.5
        moved: Array = (there / here) ** 0.5 * x - (there - here) / length * prediction
        return moved


def _combined(predictions: tuple[Array, ...]) -> Array:
    weights = _ADAMS_BASHFORTH[len(predictions) - 1]
    first, *others = zip(weights.tolist(), predictions, strict=True)
    return weighted_sum(first, *others)
