"""diffusers' step callbacks, so that a function written for its SDXL pipeline runs here unchanged.

Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, _callback_tensor_inputs and the end of the
loop; docs/source/en/using-diffusers/callback.md.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, final, runtime_checkable

import numpy as np

from triptych.errors import TriptychError, UsageError
from triptych.sampling.guidance import is_guided
from triptych.sampling.step_tensors import CALLBACK_TENSORS, MASK_TENSORS, StepTensors
from triptych.types import Array

ALL_TENSORS = (*CALLBACK_TENSORS, *MASK_TENSORS)
"""What some run or other knows."""

_CONDITIONING = ("prompt_embeds", "add_text_embeds", "add_time_ids")


@final
class SamplingRun:
    """What a callback may read and change of the run: diffusers' `pipe` argument.

    Attributes:
        num_timesteps: steps of the run.
    """

    def __init__(
        self, *, guidance_scale: float, num_timesteps: int, guidance_rescale: float = 0.0
    ) -> None:
        self._guidance_scale = guidance_scale
        self._guidance_rescale = guidance_rescale
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
    def guidance_rescale(self) -> float:
        """The share of rescaling at the next step. Set `_guidance_rescale`, or this."""
        return self._guidance_rescale

    @guidance_rescale.setter
    def guidance_rescale(self, share: float) -> None:
        self._guidance_rescale = share

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


def asked_tensors(
    callback: object, given: Iterable[str], *, known: Iterable[str] = ALL_TENSORS
) -> tuple[str, ...]:
    """The tensors that a callback is given: its own list where it has one, else the caller's.

    Raises:
        UsageError: a name that is not one of the `known`.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, __call__, at its start.
    """
    asked = tuple(callback.tensor_inputs if isinstance(callback, AskingCallback) else given)
    _check_names(asked, known)
    return asked


def apply_callback(
    callback: StepCallback,
    *,
    run: SamplingRun,
    index: int,
    timestep: float,
    names: tuple[str, ...],
    tensors: StepTensors,
) -> StepTensors:
    """Call a callback and take over what it returns.

    Raises:
        UsageError: it raises, or returns no mapping, an unknown tensor, or one of a shape that
            cannot be.
    """
    before = tensors.named(guided=run.do_classifier_free_guidance)
    asked = {name: before[name].copy() for name in names}
    try:
        returned = callback(run, index, timestep, asked)
    except TriptychError:
        raise
    except Exception as error:
        raise UsageError(
            f"callback_on_step_end at step {index}: it raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(returned, Mapping):
        raise UsageError(
            f"callback_on_step_end at step {index}: got {type(returned).__name__} back, want the "
            "callback_kwargs it was given. End the callback with: return callback_kwargs"
        )
    _check_names(returned, before)
    _check_shapes(returned, before=before, run=run, index=index)
    return tensors.replaced(returned)


def _check_names(names: Iterable[str], known: Iterable[str]) -> None:
    allowed = tuple(known)
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise UsageError(
            f"callback_on_step_end_tensor_inputs: got {', '.join(unknown)}, "
            f"want some of {', '.join(allowed)}."
        )


def _check_shapes(
    returned: Mapping[str, Array], *, before: Mapping[str, Array], run: SamplingRun, index: int
) -> None:
    """Rows as the next step needs them; behind them, axes as they were."""
    pictures = len(before["latents"])
    is_guided = run.do_classifier_free_guidance
    after = {**before, **returned}
    # Both halves may be kept for a step that is guided again.
    has_both = not is_guided and all(len(after[name]) == 2 * pictures for name in _CONDITIONING)
    rows = dict.fromkeys(_CONDITIONING, 2 * pictures if is_guided or has_both else pictures)
    rows |= {name: len(before[name]) for name in returned if name not in _CONDITIONING}
    for name, wanted in rows.items():
        shape, axes = np.shape(after[name]), before[name].shape[1:]
        if shape != (wanted, *axes):
            raise UsageError(
                f"callback_on_step_end at step {index}: got {name} {list(shape)} back, want "
                f"{[wanted, *axes]} for {pictures} pictures at guidance_scale "
                f"{run.guidance_scale:g}. A callback that turns guidance off must keep the "
                "conditional half of prompt_embeds, add_text_embeds and add_time_ids, or both "
                "halves of all."
            )
