"""diffusers' step callbacks, so that a function written for its SDXL pipeline runs here unchanged.

Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, _callback_tensor_inputs and the end of the
loop; docs/source/en/using-diffusers/callback.md.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, final, runtime_checkable

import numpy as np

from triptych.errors import UsageError
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.guidance import is_guided
from triptych.types import Array, Latents

CALLBACK_TENSORS = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")
"""What a callback may ask for and replace, by diffusers' names."""


@final
class SamplingRun:
    """What a callback may read and change of the run: diffusers' `pipe` argument.

    Attributes:
        num_timesteps: steps of the run.
    """

    def __init__(self, *, guidance_scale: float, num_timesteps: int) -> None:
        self._guidance_scale = guidance_scale
        self._interrupt = False
        self.num_timesteps = num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The scale of the next step. Set `_guidance_scale`, as callbacks for diffusers do."""
        return self._guidance_scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self._guidance_scale = scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step is guided."""
        return is_guided(self._guidance_scale)

    @property
    def interrupt(self) -> bool:
        """Whether the run ends after this step. Set `_interrupt`, or this."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value


@runtime_checkable
class StepCallback(Protocol):
    """Called at the end of every step; returns the tensors it was given, changed or not."""

    def __call__(
        self,
        run: SamplingRun,
        step_index: int,
        timestep: float,
        callback_kwargs: dict[str, Array],
        /,  # diffusers calls the first one pipe
    ) -> Mapping[str, Array]:
        """Change the run or its tensors."""


@runtime_checkable
class AskingCallback(Protocol):
    """A callback that says itself which tensors it takes, as diffusers' PipelineCallback does."""

    @property
    def tensor_inputs(self) -> Iterable[str]:
        """Names of tensors."""


def asked_tensors(callback: object, given: Iterable[str]) -> tuple[str, ...]:
    """The tensors that a callback is given: its own list where it has one, else the caller's.

    Raises:
        UsageError: a name that is not a callback tensor.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, __call__, at its start.
    """
    return check_tensor_names(
        callback.tensor_inputs if isinstance(callback, AskingCallback) else given
    )


def check_tensor_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names a callback asks for, checked.

    Raises:
        UsageError: a name that is not a callback tensor.
    """
    asked = tuple(names)
    unknown = [name for name in asked if name not in CALLBACK_TENSORS]
    if unknown:
        raise UsageError(
            f"callback_on_step_end_tensor_inputs: got {', '.join(unknown)}, "
            f"want some of {', '.join(CALLBACK_TENSORS)}."
        )
    return asked


def apply_callback(
    callback: StepCallback,
    *,
    run: SamplingRun,
    index: int,
    timestep: float,
    names: tuple[str, ...],
    latents: Latents,
    conditioning: Conditioning,
) -> tuple[Latents, Conditioning]:
    """Call a callback and take over what it returns.

    Raises:
        UsageError: it returns no mapping, an unknown tensor, or one of a shape that cannot be.
    """
    tensors = {
        "latents": latents,
        "prompt_embeds": conditioning.encoder_hidden_states,
        "add_text_embeds": conditioning.text_embeds,
        "add_time_ids": conditioning.time_ids,
    }
    returned = callback(run, index, timestep, {name: tensors[name].copy() for name in names})
    if not isinstance(returned, Mapping):
        raise UsageError(
            f"callback_on_step_end at step {index}: got {type(returned).__name__} back, want the "
            "callback_kwargs it was given. End the callback with: return callback_kwargs"
        )
    check_tensor_names(returned)
    replaced = {name: _float32(tensor) for name, tensor in {**tensors, **returned}.items()}
    _check_shapes(replaced, before=latents, run=run, index=index)
    changed = Conditioning(
        encoder_hidden_states=replaced["prompt_embeds"],
        text_embeds=replaced["add_text_embeds"],
        time_ids=replaced["add_time_ids"],
    )
    return replaced["latents"], changed


def _check_shapes(
    replaced: Mapping[str, Array], *, before: Latents, run: SamplingRun, index: int
) -> None:
    shape = replaced["latents"].shape
    if shape != before.shape:
        raise UsageError(
            f"callback_on_step_end at step {index}: got latents {list(shape)} back, "
            f"want {list(before.shape)}."
        )
    rows = len(before) * (2 if run.do_classifier_free_guidance else 1)
    names = ("prompt_embeds", "add_text_embeds", "add_time_ids")
    if not run.do_classifier_free_guidance and all(
        len(replaced[name]) == 2 * len(before) for name in names
    ):
        return  # both halves are kept for a step that is guided again
    for name in names:
        if len(replaced[name]) != rows:
            raise UsageError(
                f"callback_on_step_end at step {index}: got {len(replaced[name])} rows of {name}, "
                f"want {rows} for {len(before)} pictures at guidance_scale {run.guidance_scale:g}. "
                "A callback that turns guidance off must keep the conditional half of all three, "
                "or both halves of all."
            )


def _float32(tensor: Array) -> Array:
    return np.ascontiguousarray(tensor, dtype=np.float32)
