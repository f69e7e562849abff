"""Observers to hang on a run: they look at steps and change nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, TypeAlias, final

from triptych.errors import UsageError
from triptych.sampling.loop import Observer, StepEvent
from triptych.types import Latents

PreviewOf: TypeAlias = Literal["denoised", "latents"]
"""denoised: what a step believes the finished picture is, x0. latents: what it holds, x_t."""


@final
class StepKeeper:
    """Keeps the latents after chosen steps.

    Step k means the latents after k steps, so the first is 1 and the last num_inference_steps.

    Attributes:
        latents: a copy for each chosen step that has run.
    """

    def __init__(self, steps: Iterable[int]) -> None:
        self._steps = frozenset(steps)
        self.latents: dict[int, Latents] = {}

    def __call__(self, event: StepEvent) -> None:
        """Keep this step's latents if it was chosen."""
        if event.index + 1 in self._steps:
            self.latents[event.index + 1] = event.latents.copy()


@final
class PreviewKeeper:
    """Keeps what each step believes the picture is, or what it holds, to be decoded afterwards.

    Attributes:
        latents: a copy for each step that has run, by its number from 1.
    """

    def __init__(self, *, of: PreviewOf = "denoised") -> None:
        self._of = of
        self.latents: dict[int, Latents] = {}

    def __call__(self, event: StepEvent) -> None:
        """Keep this step's."""
        kept = event.denoised if self._of == "denoised" else event.latents
        self.latents[event.index + 1] = kept.copy()


@final
class Recorder:
    """Keeps every step's event, with copies of its arrays.

    Attributes:
        events: the steps so far.
    """

    def __init__(self) -> None:
        self.events: list[StepEvent] = []

    def __call__(self, event: StepEvent) -> None:
        """Keep this step."""
        self.events.append(
            replace(
                event,
                latents=event.latents.copy(),
                noise_pred=event.noise_pred.copy(),
                denoised=event.denoised.copy(),
            )
        )


def observe(events: Iterable[StepEvent], observers: Iterable[Observer]) -> Iterator[StepEvent]:
    """Show every event to every observer on its way."""
    watching = tuple(observers)
    for event in events:
        for observer in watching:
            observer(event)
        yield event


def check_save_steps(steps: Iterable[int], *, num_inference_steps: int) -> tuple[int, ...]:
    """The steps to save, sorted, each once.

    Raises:
        UsageError: a step that the run does not have.
    """
    chosen = tuple(sorted(set(steps)))
    outside = [step for step in chosen if not 1 <= step <= num_inference_steps]
    if outside:
        raise UsageError(
            f"save steps: got {', '.join(map(str, outside))}, want 1 to {num_inference_steps}, "
            "the steps of the run. Raise --num-inference-steps or leave them out."
        )
    return chosen
