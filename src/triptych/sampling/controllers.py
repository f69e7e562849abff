"""Callbacks that steer a run, beside those that users bring. Each keeps diffusers' contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError
from triptych.sampling.callbacks import SamplingRun, StepCallback, asked_tensors
from triptych.types import Array


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceCutoff:
    """Turns guidance off for the rest of a run: one U-Net row a picture instead of two.

    The step at which it fires has been guided already: of 25 steps with a ratio of 0.4, 11 are, and
    the U-Net sees 36 rows instead of 50.

    Attributes:
        cutoff_step_ratio: of the run's steps, 0 to 1; or
        cutoff_step_index: the step, counted from 0.

    Source:
        diffusers 0.39 callbacks.py, SDXLCFGCutoffCallback, which keeps one row of the conditioning
        and so serves one picture; this serves any number.
    """

    cutoff_step_ratio: float | None = None
    cutoff_step_index: int | None = None
    tensor_inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse both, neither, and a ratio that is none.

        Raises:
            UsageError: as said.
        """
        if (self.cutoff_step_ratio is None) == (self.cutoff_step_index is None):
            raise UsageError(
                "guidance cutoff: got both or none of cutoff_step_ratio and cutoff_step_index, "
                "want one of them."
            )
        if self.cutoff_step_ratio is not None and not 0 <= self.cutoff_step_ratio <= 1:
            raise UsageError(
                f"guidance cutoff: got cutoff_step_ratio {self.cutoff_step_ratio}, want 0 to 1."
            )

    def __call__(
        self,
        run: SamplingRun,
        step_index: int,
        timestep: float,  # noqa: ARG002  the contract's
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        """Lower the guidance scale once the step is reached."""
        cutoff = self.cutoff_step_index
        if self.cutoff_step_ratio is not None:
            cutoff = int(run.num_timesteps * self.cutoff_step_ratio)
        if step_index == cutoff:
            run.guidance_scale = 0.0
        return callback_kwargs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSchedule:
    """Another guidance scale for each step.

    Attributes:
        scales: one a step. The first is the run's own `guidance_scale` and must be given there too,
            because a callback comes after a step. A scale up to 1 makes the step unguided.
    """

    scales: tuple[float, ...]
    tensor_inputs: tuple[str, ...] = ()

    def __call__(
        self,
        run: SamplingRun,
        step_index: int,
        timestep: float,  # noqa: ARG002  the contract's
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        """Set the scale of the next step.

        Raises:
            UsageError: there is not one scale for each step.
        """
        if len(self.scales) != run.num_timesteps:
            raise UsageError(
                f"guidance schedule: got {len(self.scales)} scales, want {run.num_timesteps}: one "
                "for each step."
            )
        if step_index + 1 < len(self.scales):
            run.guidance_scale = self.scales[step_index + 1]
        return callback_kwargs


@final
class CallbackChain:
    """Several callbacks, each given what the one before it returned.

    Source: diffusers 0.39 callbacks.py, MultiPipelineCallbacks.
    """

    def __init__(self, callbacks: Sequence[StepCallback], *, given: Sequence[str] = ()) -> None:
        """Chain callbacks; `given` are the tensors of those that do not say so themselves."""
        self._callbacks = tuple(callbacks)
        self._names = [asked_tensors(callback, given) for callback in callbacks]

    @property
    def tensor_inputs(self) -> tuple[str, ...]:
        """All tensors that any of them takes."""
        return tuple(dict.fromkeys(name for names in self._names for name in names))

    def __call__(
        self,
        run: SamplingRun,
        step_index: int,
        timestep: float,
        callback_kwargs: dict[str, Array],
    ) -> Mapping[str, Array]:
        """Call each with its tensors as they are by then.

        Raises:
            UsageError: one returns no mapping.
        """
        tensors = dict(callback_kwargs)
        for callback, names in zip(self._callbacks, self._names, strict=True):
            returned = callback(run, step_index, timestep, {name: tensors[name] for name in names})
            if not isinstance(returned, Mapping):
                raise UsageError(
                    f"callback_on_step_end at step {step_index}: got {type(returned).__name__} "
                    f"back from {callback!r}, want the callback_kwargs it was given. End the "
                    "callback with: return callback_kwargs"
                )
            tensors |= returned
        return tensors
