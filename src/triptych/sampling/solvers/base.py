"""What a solver promises: a start and a step, with its memory passed in and out."""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from triptych.errors import UsageError
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.schedule import Schedule
from triptych.types import Array, Latents, NoisePred


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SolverState:
    """What a solver remembers between steps. Only the solver that made it looks inside.

    Attributes:
        estimates: earlier derivatives, predictions or estimates of x0, the newest last.
        anchor: latents that a step of several evaluations started from.
        noise: where the generators stand; None where no noise may be drawn.
        foreign: the memory of a solver from elsewhere, which fits none of these.
    """

    estimates: tuple[Array, ...] = ()
    anchor: Array | None = None
    noise: NoiseStream | None = None
    foreign: object = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SolverStep:
    """What one step gives.

    Attributes:
        latents: after the step.
        denoised: the estimate of x0 that it used, shaped as the latents.
        state: for the next step.
    """

    latents: Latents
    denoised: Array
    state: SolverState


@runtime_checkable
class Solver(Protocol):
    """Moves latents from one noise level to the next.

    A solver holds settings and no state: a step can be replayed, swapped or teacher-forced.
    """

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:
        """The state before the first step.

        Args:
            schedule: the run's.
            noise: where the generators stand after the first latents; solvers that add no noise
                need none.
        """

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Take step `index`.

        Args:
            latents: before the step, scaled as `schedule.variance` says.
            noise_pred: the U-Net's answer after guidance, as `schedule.prediction_type` says.
            schedule: the run's.
            index: the step, 0 to num_inference_steps - 1. A run may begin after 0.
            state: what the step before gave, or `init`.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: the step adds noise, and the state has no stream to draw it from.
        """


def drawn_noise(state: SolverState, shape: tuple[int, ...]) -> tuple[Array, NoiseStream]:
    """The noise that a step adds, float32, and the stream after it.

    Raises:
        UsageError: the state has no stream.
    """
    if state.noise is None:
        raise UsageError(
            "solver: got no noise stream, want one: this scheduler adds noise at its steps. "
            "Give `iterate` the stream that the first latents were drawn from."
        )
    return draw_noise(state.noise, shape)
