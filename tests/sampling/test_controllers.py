"""Callbacks that steer: how often the U-Net runs, and on what."""

from collections.abc import Mapping

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.sampling.callbacks import SamplingRun, StepCallback
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.controllers import CallbackChain, GuidanceCutoff, GuidanceSchedule
from triptych.sampling.loop import iterate
from triptych.sampling.samplers import make_sampler
from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.sampling.timestep_spacing import Steps
from triptych.types import Array, TensorMap

PICTURES = 2


class CountingUnet:
    """Predicts zeros, and remembers how many rows each call had."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.texts: list[float] = []

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.rows.append(len(feed["sample"]))
        self.texts.append(float(feed["text_embeds"][-1, 0]))
        return {"noise_pred": np.zeros_like(feed["sample"])}


def conditioning() -> Conditioning:
    side = np.repeat(np.array([-1, 1], np.float32), PICTURES)
    return Conditioning(
        encoder_hidden_states=np.broadcast_to(side[:, None, None], (4, 7, 6)).copy(),
        text_embeds=np.broadcast_to(side[:, None], (4, 5)).copy(),
        time_ids=np.broadcast_to(side[:, None], (4, 6)).copy(),
    )


def run_all(
    callback: StepCallback | None, *, steps: int, guidance_scale: float = 5.0
) -> CountingUnet:
    unet = CountingUnet()
    config = SchedulerConfig(timestep_spacing="leading", steps_offset=1)
    sampler = make_sampler(config, Steps(num_inference_steps=steps))
    events = iterate(
        unet,
        schedule=sampler.schedule,
        solver=sampler.solver,
        latents=np.ones((PICTURES, 4, 3, 5), np.float32),
        conditioning=conditioning(),
        guidance_scale=guidance_scale,
        callback_on_step_end=callback,
    )
    assert len(list(events)) == steps
    return unet


@pytest.mark.parametrize(
    ("steps", "ratio", "rows_a_picture"),
    [(25, 0.4, 36), (50, 0.4, 71), (25, 1.0, 50), (25, 0.0, 26)],
)
def test_a_cutoff_saves_the_rows_that_the_seeds_count(
    steps: int, ratio: float, rows_a_picture: int
) -> None:
    unet = run_all(GuidanceCutoff(cutoff_step_ratio=ratio), steps=steps)
    assert sum(unet.rows) == rows_a_picture * PICTURES


def test_a_cutoff_keeps_the_conditional_half_of_every_picture() -> None:
    unet = run_all(GuidanceCutoff(cutoff_step_index=1), steps=4)
    assert unet.rows == [4, 4, 2, 2]
    assert unet.texts == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cutoff_step_ratio": 0.4, "cutoff_step_index": 3},
        {"cutoff_step_ratio": 1.1},
        {"cutoff_step_ratio": -0.1},
    ],
)
def test_a_cutoff_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="guidance cutoff"):
        GuidanceCutoff(**settings)  # type: ignore[arg-type]


def test_guidance_may_come_and_go() -> None:
    schedule = GuidanceSchedule(scales=(5.0, 1.0, 7.0, 0.0, 3.0))
    assert run_all(schedule, steps=5).rows == [4, 2, 4, 2, 4]


def test_a_schedule_needs_a_scale_for_each_step() -> None:
    with pytest.raises(UsageError, match="got 2 scales, want 3"):
        run_all(GuidanceSchedule(scales=(5.0, 1.0)), steps=3)


# Several callbacks


class Doubler:
    """Doubles the latents, and says itself that it takes them."""

    tensor_inputs = ("latents",)

    def __call__(
        self,
        run: SamplingRun,
        step_index: int,
        timestep: float,
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        assert set(callback_kwargs) == {"latents"}
        assert run.num_timesteps > step_index
        assert timestep >= 0
        return {"latents": callback_kwargs["latents"] * 2}


def forgetful(
    run: SamplingRun,  # noqa: ARG001
    step_index: int,  # noqa: ARG001
    timestep: float,  # noqa: ARG001
    callback_kwargs: dict[str, Array],  # noqa: ARG001
) -> Mapping[str, Array]:
    return None  # type: ignore[return-value]


def test_a_chain_hands_on_what_each_returns() -> None:
    chain = CallbackChain([Doubler(), Doubler(), GuidanceCutoff(cutoff_step_index=0)])
    assert chain.tensor_inputs == ("latents",)
    run = SamplingRun(guidance_scale=5.0, num_timesteps=4)
    returned = chain(run, 0, 999.0, {"latents": np.ones(3, np.float32)})
    assert returned["latents"].tolist() == [4, 4, 4]
    assert run.guidance_scale == 0


def test_a_chain_names_the_link_that_forgets() -> None:
    run = SamplingRun(guidance_scale=5.0, num_timesteps=4)
    with pytest.raises(UsageError, match=r"step 2: got NoneType back from .*forgetful"):
        CallbackChain([forgetful])(run, 2, 999.0, {})


def test_a_callback_that_asks_for_what_there_is_not() -> None:
    with pytest.raises(UsageError, match="got noise, want some of latents"):
        CallbackChain([forgetful], given=["noise"])


def test_a_callbacks_own_list_wins() -> None:
    assert run_all(Doubler(), steps=2).rows == [4, 4]
