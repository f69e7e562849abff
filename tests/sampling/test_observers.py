"""Observers look at steps and change nothing; save steps count from 1."""

from collections.abc import Iterator

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.sampling.loop import StepEvent
from triptych.sampling.observers import Recorder, StepKeeper, check_save_steps, observe
from triptych.types import Array

STEPS = 4


def events(buffer: Array) -> Iterator[StepEvent]:
    """Steps that show one buffer again and again, as an engine may that reuses its memory."""
    for index in range(STEPS):
        buffer[:] = index + 1
        yield StepEvent(
            index=index,
            num_inference_steps=STEPS,
            timestep=900.0 - index,
            sigma=4.0 - index,
            sigma_next=3.0 - index,
            latents=buffer,
            noise_pred=buffer,
            denoised=buffer,
        )


def buffer() -> Array:
    return np.zeros((1, 4, 2, 2), np.float32)


def test_step_k_is_the_latents_after_k_steps() -> None:
    keeper = StepKeeper([1, 4])
    list(observe(events(buffer()), [keeper]))
    assert {step: float(kept.mean()) for step, kept in keeper.latents.items()} == {1: 1, 4: 4}


def test_recorder_keeps_copies_of_every_step() -> None:
    recorder = Recorder()
    list(observe(events(buffer()), [recorder]))
    assert [event.index for event in recorder.events] == [0, 1, 2, 3]
    for name in ("latents", "noise_pred", "denoised"):
        kept = [float(getattr(event, name).mean()) for event in recorder.events]
        assert kept == [1, 2, 3, 4]


def test_every_observer_sees_a_step_before_the_next_is_computed() -> None:
    seen: list[tuple[str, int]] = []
    shown = observe(
        events(buffer()),
        [
            lambda event: seen.append(("first", event.index)),
            lambda event: seen.append(("second", event.index)),
        ],
    )
    assert next(shown).index == 0
    assert seen == [("first", 0), ("second", 0)]
    assert [event.index for event in shown] == [1, 2, 3]
    assert len(seen) == 2 * STEPS


def test_save_steps_are_sorted_and_taken_once() -> None:
    assert check_save_steps([8, 1, 4, 1], num_inference_steps=8) == (1, 4, 8)
    assert check_save_steps([], num_inference_steps=8) == ()


@pytest.mark.parametrize("outside", [0, -1, 9])
def test_save_steps_outside_the_run_are_named(outside: int) -> None:
    with pytest.raises(UsageError, match=f"got {outside}, want 1 to 8"):
        check_save_steps([4, outside], num_inference_steps=8)
