"""The loop on U-Nets that know the answer: lazy, exact, immutable, and open to callbacks."""

from collections.abc import Mapping
from itertools import islice
from typing import final

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.sampling.callbacks import SamplingRun
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.loop import StepEvent, iterate
from triptych.sampling.noise import NoiseStream
from triptych.sampling.samplers import make_sampler, make_schedule
from triptych.sampling.schedule import Schedule
from triptych.sampling.scheduler_config import PredictionType, SchedulerConfig
from triptych.sampling.solvers.euler import EulerSolver
from triptych.sampling.timestep_spacing import Steps
from triptych.types import Array, Latents, TensorMap

PICTURES = 2
STEPS = 6


def gaussian(seed: int) -> Latents:
    return np.random.default_rng(seed).standard_normal((PICTURES, 4, 3, 5)).astype(np.float32)


def schedule(*, prediction_type: PredictionType = "epsilon", steps: int = STEPS) -> Schedule:
    config = SchedulerConfig(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return make_schedule(config, num_inference_steps=steps)


@final
class OracleUnet:
    """Knows the picture: says exactly what of its sample is noise, as the schedule scales it."""

    def __init__(self, picture: Latents, schedule: Schedule) -> None:
        self._picture = picture.astype(np.float64)
        self._sigmas = dict(
            zip(schedule.timesteps.tolist(), schedule.sigmas.tolist(), strict=False)
        )
        self._velocity = schedule.prediction_type == "v_prediction"
        self.feeds: list[TensorMap] = []

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.feeds.append(feed)
        sigma = self._sigmas[float(feed["timestep"])]
        picture = np.resize(self._picture, feed["sample"].shape)
        alpha = 1 / np.sqrt(sigma**2 + 1)
        noise = (feed["sample"] / alpha - picture) / sigma
        answer = alpha * noise - sigma * alpha * picture if self._velocity else noise
        return {"noise_pred": answer.astype(np.float32)}


@final
class ZeroUnet:
    """Sees no noise anywhere; counts its calls and remembers its feeds."""

    def __init__(self) -> None:
        self.feeds: list[TensorMap] = []

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.feeds.append(feed)
        return {"noise_pred": np.zeros_like(feed["sample"])}


def conditioning(rows: int) -> Conditioning:
    marks = np.arange(rows, dtype=np.float32)
    return Conditioning(
        encoder_hidden_states=np.broadcast_to(marks[:, None, None], (rows, 7, 6)).copy(),
        text_embeds=np.broadcast_to(marks[:, None], (rows, 5)).copy(),
        time_ids=np.broadcast_to(marks[:, None], (rows, 6)).copy(),
    )


def take_all(unet: OracleUnet | ZeroUnet, steps: Schedule, start: Latents) -> list[StepEvent]:
    return list(
        iterate(
            unet,
            schedule=steps,
            solver=EulerSolver(),
            latents=start,
            conditioning=conditioning(PICTURES),
            guidance_scale=1.0,
        )
    )


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_oracle_ends_in_its_picture(prediction_type: PredictionType) -> None:
    steps = schedule(prediction_type=prediction_type)
    picture = gaussian(0)
    start = gaussian(1) * np.float32(steps.init_noise_sigma)

    events = take_all(OracleUnet(picture, steps), steps, start)

    for event in events:  # knows the whole picture at every step, not only at the end
        np.testing.assert_allclose(event.denoised, picture, atol=2e-5)
    np.testing.assert_allclose(events[-1].latents, picture, atol=2e-6)


def test_latents_stay_on_the_line_from_noise_to_picture() -> None:
    steps = schedule()
    picture, noise = gaussian(0), gaussian(1)

    events = take_all(OracleUnet(picture, steps), steps, picture + steps.sigmas[0] * noise)

    for event in events:
        np.testing.assert_allclose(event.noise_pred, noise, atol=5e-6)
        np.testing.assert_allclose(
            event.latents, picture + np.float32(event.sigma_next) * noise, atol=2e-5
        )


def test_guidance_on_an_oracle_changes_nothing() -> None:
    steps, picture = schedule(), gaussian(0)
    for mode in ("batched", "split"):
        events = list(
            iterate(
                OracleUnet(picture, steps),
                schedule=steps,
                solver=EulerSolver(),
                latents=gaussian(1),
                conditioning=conditioning(2 * PICTURES),
                guidance_scale=7.5,
                guidance_mode=mode,
            )
        )
        np.testing.assert_allclose(events[-1].latents, picture, atol=2e-6)


def test_events_tell_the_schedule() -> None:
    steps = schedule()
    unet = ZeroUnet()

    events = take_all(unet, steps, gaussian(0))

    assert [event.index for event in events] == list(range(STEPS))
    assert {event.num_inference_steps for event in events} == {STEPS}
    assert [event.timestep for event in events] == steps.timesteps.tolist()
    assert [event.sigma for event in events] == steps.sigmas[:-1].tolist()
    assert [event.sigma_next for event in events] == steps.sigmas[1:].tolist()
    assert [float(feed["timestep"]) for feed in unet.feeds] == steps.timesteps.tolist()


def test_every_evaluation_of_a_method_with_two_is_a_step() -> None:
    config = SchedulerConfig(class_name="HeunDiscreteScheduler")
    sampler = make_sampler(config, Steps(num_inference_steps=STEPS))
    unet = ZeroUnet()

    events = list(
        iterate(
            unet,
            schedule=sampler.schedule,
            solver=sampler.solver,
            latents=gaussian(0),
            conditioning=conditioning(PICTURES),
            guidance_scale=1.0,
        )
    )

    assert len(events) == len(unet.feeds) == 2 * STEPS - 1
    assert {event.num_inference_steps for event in events} == {2 * STEPS - 1}
    assert [event.sigma for event in events[1::2]] == [event.sigma for event in events[2::2]]


def run_with_noise(noise: NoiseStream | None) -> list[StepEvent]:
    config = SchedulerConfig(class_name="EulerAncestralDiscreteScheduler")
    sampler = make_sampler(config, Steps(num_inference_steps=STEPS))
    return list(
        iterate(
            ZeroUnet(),
            schedule=sampler.schedule,
            solver=sampler.solver,
            latents=gaussian(0),
            conditioning=conditioning(PICTURES),
            noise=noise,
            guidance_scale=1.0,
        )
    )


def test_noise_comes_from_the_stream_and_is_the_same_again() -> None:
    first, again = (run_with_noise(NoiseStream(seeds=(4,))) for _ in range(2))
    other = run_with_noise(NoiseStream(seeds=(5,)))
    np.testing.assert_array_equal(first[-1].latents, again[-1].latents)
    assert not np.allclose(first[-1].latents, other[-1].latents)


def test_a_solver_that_adds_noise_needs_a_stream() -> None:
    with pytest.raises(UsageError, match="got no noise stream, want one"):
        run_with_noise(None)


# --- laziness and immutability -------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 3, STEPS])
def test_only_the_steps_that_are_taken_are_computed(taken: int) -> None:
    unet = ZeroUnet()
    events = iterate(
        unet,
        schedule=schedule(),
        solver=EulerSolver(),
        latents=gaussian(0),
        conditioning=conditioning(PICTURES),
        guidance_scale=1.0,
    )
    assert len(list(islice(events, taken))) == taken
    assert len(unet.feeds) == taken


def test_arrays_of_events_are_read_only() -> None:
    for event in take_all(ZeroUnet(), schedule(), gaussian(0)):
        for array in (event.latents, event.noise_pred, event.denoised):
            assert array.dtype == np.float32
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_the_start_is_not_changed() -> None:
    start = gaussian(0)
    take_all(ZeroUnet(), schedule(), start)
    np.testing.assert_array_equal(start, gaussian(0))


# --- callbacks -----------------------------------------------------------------------------------


@final
class Scripted:
    """A callback that does one thing at one step."""

    def __init__(self, at: int, **changes: Array | float | bool) -> None:
        self._at = at
        self._changes = changes
        self.steps: list[tuple[int, float]] = []

    def __call__(
        self, run: SamplingRun, step_index: int, timestep: float, callback_kwargs: dict[str, Array]
    ) -> Mapping[str, Array]:
        self.steps.append((step_index, timestep))
        if step_index == self._at:
            for name, value in self._changes.items():
                if isinstance(value, np.ndarray):
                    callback_kwargs[name] = value
                else:
                    setattr(run, name, value)
        return callback_kwargs


def run_with(
    callback: Scripted, *, names: tuple[str, ...] = ("latents",)
) -> tuple[ZeroUnet, list[StepEvent]]:
    unet = ZeroUnet()
    events = list(
        iterate(
            unet,
            schedule=schedule(),
            solver=EulerSolver(),
            latents=gaussian(0),
            conditioning=conditioning(2 * PICTURES),
            guidance_scale=5.0,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
        )
    )
    return unet, events


def test_a_callback_is_called_after_every_step() -> None:
    callback = Scripted(at=-1)
    _, events = run_with(callback)
    assert callback.steps == [(event.index, event.timestep) for event in events]


def test_replaced_latents_are_shown_and_used() -> None:
    unet, events = run_with(Scripted(at=2, latents=gaussian(7)))

    np.testing.assert_array_equal(events[2].latents, gaussian(7))
    scale = np.float32(np.sqrt(events[3].sigma ** 2 + 1))
    np.testing.assert_allclose(unet.feeds[3]["sample"][:PICTURES], gaussian(7) / scale, rtol=1e-6)
    np.testing.assert_array_equal(events[-1].latents, gaussian(7))  # nothing there looks like noise


def test_replaced_conditioning_is_used_from_the_next_step_on() -> None:
    unet, _ = run_with(
        Scripted(at=1, add_time_ids=np.full((4, 6), 9, np.float32)), names=("add_time_ids",)
    )
    told = [float(feed["time_ids"].mean()) for feed in unet.feeds]
    assert told == [1.5, 1.5, 9, 9, 9, 9]


def test_guidance_can_be_turned_off_on_the_way() -> None:
    halves = conditioning(2 * PICTURES)
    unet, events = run_with(
        Scripted(
            at=1,
            _guidance_scale=0.0,
            prompt_embeds=halves.encoder_hidden_states[PICTURES:],
            add_text_embeds=halves.text_embeds[PICTURES:],
            add_time_ids=halves.time_ids[PICTURES:],
        ),
        names=("prompt_embeds", "add_text_embeds", "add_time_ids"),
    )
    assert [len(feed["sample"]) for feed in unet.feeds] == [4, 4, 2, 2, 2, 2]
    assert unet.feeds[2]["text_embeds"][:, 0].tolist() == [2, 3]
    assert len(events) == STEPS


def test_guidance_turned_off_without_halving_takes_the_conditional_half() -> None:
    unet, _ = run_with(Scripted(at=1, _guidance_scale=0.0))
    rows = [len(feed["sample"]) for feed in unet.feeds]
    assert rows[:2] == [2 * PICTURES] * 2
    assert set(rows[2:]) == {PICTURES}


@pytest.mark.parametrize("attribute", ["_interrupt", "interrupt"])
def test_interrupt_gives_the_current_step_and_stops(attribute: str) -> None:
    unet, events = run_with(Scripted(at=2, **{attribute: True}))
    assert [event.index for event in events] == [0, 1, 2]
    assert len(unet.feeds) == 3


def test_a_bad_tensor_name_is_refused_before_the_first_step() -> None:
    unet = ZeroUnet()
    events = iterate(
        unet,
        schedule=schedule(),
        solver=EulerSolver(),
        latents=gaussian(0),
        conditioning=conditioning(PICTURES),
        callback_on_step_end_tensor_inputs=("noise",),
    )
    with pytest.raises(UsageError, match="got noise, want some of latents"):
        next(events)
    assert unet.feeds == []
