"""What a solver promises: a start and a step, with its memory passed in and out."""

from typing import Protocol, TypeAlias, runtime_checkable

from triptych.sampling.schedule import Schedule
from triptych.types import Array, Latents

SolverState: TypeAlias = tuple[Array, ...] | None
"""What a solver remembers between steps: earlier estimates, or nothing."""


@runtime_checkable
class Solver(Protocol):
    """Moves latents from one noise level to the next.

    A solver holds no state of its own: a step can be replayed, swapped or teacher-forced.
    """

    def init(self, schedule: Schedule) -> SolverState:
        """The state before the first step."""

    def step(
        self, latents: Latents, denoised: Array, schedule: Schedule, index: int, state: SolverState
    ) -> tuple[Latents, SolverState]:
        """The latents after step `index`, and the state for the next."""
