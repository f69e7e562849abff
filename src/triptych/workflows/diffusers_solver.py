"""diffusers' own schedulers as solvers of triptych's loop.

Here and not in sampling, which knows no framework. A diffusers scheduler changes as it steps; it is
copied before every step, so that the solver around it keeps the promise of every solver: state in,
state out.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

import numpy as np

from triptych.errors import UsageError
from triptych.sampling.noise import NoiseStream
from triptych.sampling.schedule import Schedule, denoised_from_noise_pred
from triptych.sampling.solvers.base import SolverState, SolverStep
from triptych.types import Latents, NoisePred

if TYPE_CHECKING:
    import torch


@runtime_checkable
class DiffusersScheduler(Protocol):
    """What is used of a diffusers scheduler."""

    timesteps: "torch.Tensor"
    init_noise_sigma: float
    config: Mapping[str, object]

    def set_timesteps(self, *arguments: int, **named: object) -> None:
        """Lay out the steps of a run."""

    def scale_model_input(self, sample: "torch.Tensor", timestep: object) -> "torch.Tensor":
        """The U-Net's sample."""

    def step(
        self, answer: "torch.Tensor", timestep: object, sample: "torch.Tensor", **named: object
    ) -> object:
        """Take a step; gives an object with `prev_sample`."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """A scheduler and its generators between two steps. Copied, never stepped."""

    scheduler: DiffusersScheduler
    generators: tuple["torch.Generator", ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusersSolver:
    """Steps with a diffusers scheduler.

    Attributes:
        scheduler: its timesteps are set. Copied, never stepped.
        eta: handed on where the scheduler's step takes it, as diffusers' pipelines do.
    """

    scheduler: DiffusersScheduler
    eta: float = 0.0

    def init(self, schedule: Schedule, noise: NoiseStream | None = None) -> SolverState:  # noqa: ARG002  the Protocol's
        """A copy of the scheduler, and torch generators where the stream stands."""
        generators = () if noise is None else torch_generators(noise)
        return SolverState(foreign=_Memory(scheduler=self.scheduler, generators=generators))

    def step(
        self,
        latents: Latents,
        noise_pred: NoisePred,
        schedule: Schedule,
        index: int,
        state: SolverState,
    ) -> SolverStep:
        """Take one step with a copy of the scheduler that the state holds.

        Raises:
            ScheduleError: `index` is outside the schedule.
            UsageError: the state is not this solver's.
        """
        import torch

        if not isinstance(state.foreign, _Memory):
            raise UsageError("solver state: got another solver's, want one that `init` began.")
        denoised = denoised_from_noise_pred(noise_pred, latents, schedule, index)
        scheduler = copy.deepcopy(state.foreign.scheduler)
        generators = tuple(generator.clone_state() for generator in state.foreign.generators)
        timestep = scheduler.timesteps[index]
        sample = torch.from_numpy(latents.copy())
        scheduler.scale_model_input(sample, timestep)  # some schedulers insist
        result = scheduler.step(
            torch.from_numpy(noise_pred.copy()),
            timestep,
            sample,
            **extra_arguments(scheduler, generators, self.eta),
        )
        after = getattr(result, "prev_sample").numpy()  # noqa: B009  an output class a scheduler
        estimate = getattr(result, "pred_original_sample", None)
        memory = _Memory(scheduler=scheduler, generators=generators)
        return SolverStep(
            latents=np.ascontiguousarray(after, np.float32),
            denoised=denoised if estimate is None else estimate.numpy().astype(np.float64),
            state=replace(state, foreign=memory),
        )


def torch_generators(stream: NoiseStream) -> tuple["torch.Generator", ...]:
    """Torch's generators, as far on as a stream.

    Latents have four channels, so nothing is ever left over from an odd draw.
    """
    import torch

    generators = tuple(torch.Generator("cpu").manual_seed(seed) for seed in stream.seeds)
    for generator in generators:
        torch.empty(stream.words_drawn).random_(generator=generator)  # one word a value
    return generators


def extra_arguments(
    scheduler: DiffusersScheduler, generators: Sequence["torch.Generator"], eta: float
) -> dict[str, object]:
    """As the pipeline's `prepare_extra_step_kwargs`."""
    takes = inspect.signature(scheduler.step).parameters
    extra: dict[str, object] = {}
    if "eta" in takes:
        extra["eta"] = eta
    if "generator" in takes and generators:
        extra["generator"] = list(generators) if len(generators) > 1 else generators[0]
    return extra
