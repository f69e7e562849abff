"""diffusers' callback contract: what a callback is given, may change, and may not."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.sampling.callbacks import (
    SamplingRun,
    StepCallback,
    apply_callback,
    asked_tensors,
)
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.step_tensors import CALLBACK_TENSORS, StepTensors
from triptych.types import Array, Latents

PICTURES = 2


def guided_run() -> SamplingRun:
    return SamplingRun(guidance_scale=5.0, num_timesteps=8)


def conditioning() -> Conditioning:
    rows = np.arange(2 * PICTURES, dtype=np.float32)
    return Conditioning(
        encoder_hidden_states=np.broadcast_to(rows[:, None, None], (4, 7, 6)).copy(),
        text_embeds=np.broadcast_to(rows[:, None], (4, 5)).copy(),
        time_ids=np.broadcast_to(rows[:, None], (4, 6)).copy(),
    )


def latents() -> Latents:
    return np.full((PICTURES, 4, 3, 5), 0.5, np.float32)


def call(
    callback: StepCallback,
    *,
    run: SamplingRun | None = None,
    names: tuple[str, ...] = CALLBACK_TENSORS,
) -> tuple[Latents, Conditioning]:
    after = apply_callback(
        callback,
        run=run or guided_run(),
        index=3,
        timestep=501.0,
        names=names,
        tensors=StepTensors(latents=latents(), conditioning=conditioning()),
    )
    return after.latents, after.conditioning


def returning(**tensors: object) -> StepCallback:
    def callback(
        run: SamplingRun,  # noqa: ARG001  the contract's
        step_index: int,  # noqa: ARG001
        timestep: float,  # noqa: ARG001
        callback_kwargs: dict[str, Array],  # noqa: ARG001
    ) -> Mapping[str, Array]:
        return tensors  # type: ignore[return-value]  # what people write is not typed

    return callback


def test_is_given_the_run_the_step_and_the_tensors_it_asked_for() -> None:
    seen: list[tuple[SamplingRun, int, float, set[str]]] = []

    def callback(
        run: SamplingRun, step_index: int, timestep: float, callback_kwargs: dict[str, Array]
    ) -> Mapping[str, Array]:
        seen.append((run, step_index, timestep, set(callback_kwargs)))
        return callback_kwargs

    run = guided_run()
    call(callback, run=run, names=("latents", "add_time_ids"))
    assert seen == [(run, 3, 501.0, {"latents", "add_time_ids"})]


def test_names_are_diffusers() -> None:
    seen: dict[str, Array] = {}

    def callback(
        run: SamplingRun,  # noqa: ARG001
        step_index: int,  # noqa: ARG001
        timestep: float,  # noqa: ARG001
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        seen.update(callback_kwargs)
        return callback_kwargs

    call(callback)
    told = conditioning()
    np.testing.assert_array_equal(seen["latents"], latents())
    np.testing.assert_array_equal(seen["prompt_embeds"], told.encoder_hidden_states)
    np.testing.assert_array_equal(seen["add_text_embeds"], told.text_embeds)
    np.testing.assert_array_equal(seen["add_time_ids"], told.time_ids)


def test_what_it_returns_is_taken_over() -> None:
    changed_latents, changed = call(
        returning(
            latents=latents() * 2,
            prompt_embeds=conditioning().encoder_hidden_states + 1,
            add_text_embeds=conditioning().text_embeds + 2,
            add_time_ids=conditioning().time_ids + 3,
        )
    )
    np.testing.assert_array_equal(changed_latents, latents() * 2)
    np.testing.assert_array_equal(
        changed.encoder_hidden_states, conditioning().encoder_hidden_states + 1
    )
    np.testing.assert_array_equal(changed.text_embeds, conditioning().text_embeds + 2)
    np.testing.assert_array_equal(changed.time_ids, conditioning().time_ids + 3)


def test_what_it_does_not_return_stays() -> None:
    changed_latents, changed = call(returning(add_time_ids=conditioning().time_ids * 0))
    np.testing.assert_array_equal(changed_latents, latents())
    np.testing.assert_array_equal(changed.text_embeds, conditioning().text_embeds)
    assert not changed.time_ids.any()


def test_a_change_in_place_counts_only_if_it_is_returned() -> None:
    def forgetful(
        run: SamplingRun,  # noqa: ARG001
        step_index: int,  # noqa: ARG001
        timestep: float,  # noqa: ARG001
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        for tensor in callback_kwargs.values():
            tensor[:] = 0
        return {}

    unchanged_latents, unchanged = call(forgetful)
    np.testing.assert_array_equal(unchanged_latents, latents())
    np.testing.assert_array_equal(unchanged.text_embeds, conditioning().text_embeds)


def test_other_dtypes_and_layouts_become_contiguous_float32() -> None:
    doubled = np.asfortranarray(latents().astype(np.float64))
    changed, _ = call(returning(latents=doubled))
    assert changed.dtype == np.float32
    assert changed.flags.c_contiguous


# --- what it may not -----------------------------------------------------------------------------


@pytest.mark.parametrize("returned", [None, (), "latents"])
def test_nothing_returned_says_how_to_end_a_callback(returned: object) -> None:
    def callback(
        run: SamplingRun,  # noqa: ARG001
        step_index: int,  # noqa: ARG001
        timestep: float,  # noqa: ARG001
        callback_kwargs: dict[str, Array],  # noqa: ARG001
    ) -> Mapping[str, Array]:
        return returned  # type: ignore[return-value]  # what people forget

    with pytest.raises(UsageError, match=r"step 3: got \w+ back.*return callback_kwargs"):
        call(callback)


def test_unknown_tensor_returned() -> None:
    with pytest.raises(UsageError, match="got noise_pred, want some of latents"):
        call(returning(noise_pred=latents()))


@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 4, 5, 3), (4, 4, 3, 5), (2, 4, 3), ()])
def test_latents_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"step 3: got latents \[.*want \[2, 4, 3, 5\]"):
        call(returning(latents=np.zeros(shape, np.float32)))


@pytest.mark.parametrize("name", ["prompt_embeds", "add_text_embeds", "add_time_ids"])
def test_guidance_turned_off_without_halving(name: str) -> None:
    told = {
        "prompt_embeds": conditioning().encoder_hidden_states,
        "add_text_embeds": conditioning().text_embeds,
        "add_time_ids": conditioning().time_ids,
    }
    halved = {other: tensor[PICTURES:] for other, tensor in told.items() if other != name}
    run = guided_run()
    run.guidance_scale = 0.0
    with pytest.raises(UsageError, match=rf"got {name} \[4, .*want \[2, .*conditional half"):
        call(returning(**halved), run=run)


def test_guidance_turned_off_with_halving_is_right() -> None:
    def turn_off(
        run: SamplingRun,
        step_index: int,  # noqa: ARG001
        timestep: float,  # noqa: ARG001
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        run._guidance_scale = 0.0  # as diffusers' documentation does it
        return {name: np.split(tensor, 2)[1] for name, tensor in callback_kwargs.items()}

    names = ("prompt_embeds", "add_text_embeds", "add_time_ids")
    _, changed = call(turn_off, names=names)
    assert changed.text_embeds[:, 0].tolist() == [2, 3]


def test_guidance_turned_on_without_the_unconditional_half() -> None:
    run = guided_run()
    halves = {
        "prompt_embeds": conditioning().encoder_hidden_states[2:],
        "add_text_embeds": conditioning().text_embeds[2:],
        "add_time_ids": conditioning().time_ids[2:],
    }
    with pytest.raises(UsageError, match=r"got prompt_embeds \[2, .*want \[4, "):
        call(returning(**halves), run=run)


@pytest.mark.parametrize("names", [("noise",), ("latents", "prompt"), ("",)])
def test_unknown_names_asked_for(names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="callback_on_step_end_tensor_inputs: got"):
        asked_tensors(None, names)


def test_known_names_asked_for() -> None:
    assert asked_tensors(None, iter(CALLBACK_TENSORS)) == CALLBACK_TENSORS
    assert asked_tensors(None, []) == ()


def test_masks_are_there_only_in_a_run_with_one() -> None:
    with pytest.raises(UsageError, match="got mask, want some of latents"):
        asked_tensors(None, ["mask"], known=CALLBACK_TENSORS)


def test_conditioning_of_another_width() -> None:
    wide = np.zeros((4, 7, 9), np.float32)
    with pytest.raises(UsageError, match=r"got prompt_embeds \[4, 7, 9\] back, want \[4, 7, 6\]"):
        call(returning(prompt_embeds=wide))


def test_what_it_raises_is_told_with_the_step() -> None:
    def careless(
        run: SamplingRun,  # noqa: ARG001
        step_index: int,  # noqa: ARG001
        timestep: float,  # noqa: ARG001
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        return {"latents": callback_kwargs["lanterns"]}

    with pytest.raises(UsageError, match="at step 3: it raised KeyError: 'lanterns'") as told:
        call(careless)
    assert isinstance(told.value.__cause__, KeyError)


# --- the run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["guidance_scale", "_guidance_scale"])
def test_guidance_scale_is_set_by_either_name(attribute: str) -> None:
    run = guided_run()
    assert run.do_classifier_free_guidance
    setattr(run, attribute, 1.0)
    assert run.guidance_scale == 1.0
    assert not run.do_classifier_free_guidance


@pytest.mark.parametrize("attribute", ["interrupt", "_interrupt"])
def test_interrupt_is_set_by_either_name(attribute: str) -> None:
    run = guided_run()
    assert not run.interrupt
    setattr(run, attribute, True)
    assert run.interrupt


def test_number_of_steps_is_known() -> None:
    assert guided_run().num_timesteps == 8


def test_a_plain_function_is_a_callback() -> None:
    plain: Callable[..., object] = returning()
    assert isinstance(plain, StepCallback)
