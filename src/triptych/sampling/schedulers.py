"""The schedulers by the names that people know them by, and how one is chosen for a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, final, runtime_checkable

from triptych.errors import ScheduleError
from triptych.sampling.samplers import Sampler, make_sampler
from triptych.sampling.scheduler_config import (
    SIGMA_SPACINGS,
    SchedulerConfig,
    SigmaSpacing,
    class_settings,
    read_scheduler_content,
    scheduler_config,
    spacing_setting,
)
from triptych.sampling.sigma_spacing import karras_sigmas, legacy_ddpm_sigmas
from triptych.sampling.timestep_spacing import Steps
from triptych.sampling.training import training_sigmas


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EdmDiscretization:
    """Noise levels by Karras' formula, whatever the scheduler: sgm's and Cremage's EDM.

    Attributes:
        sigma_min: the smallest; None takes the training schedule's.
        sigma_max: the largest; None takes the training schedule's.
        rho: how closely they lie at the small end; 1 is a straight line.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyDdpmDiscretization:
    """Levels of the training schedule, evenly spaced from its end down: sgm's and Cremage's."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """Which scheduler to run, where it is not simply the bundle's own.

    Attributes:
        name: one of SCHEDULERS, or a diffusers class for a maker that knows those; None takes the
            one the bundle's scheduler_config.json names. Its settings are the bundle's either way.
        sigma_spacing: how sigmas are spaced; None leaves it to the config.
        timesteps: go through these instead of a number of steps; empty does not.
        sigmas: as `timesteps`, by noise levels.
        discretization: as `sigmas`, by a formula; None does not.
        eta: share of noise that DDIM and TCD add; others have none of it, as in diffusers.
    """

    name: str | None = None
    sigma_spacing: SigmaSpacing | None = None
    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    discretization: EdmDiscretization | LegacyDdpmDiscretization | None = None
    eta: float = 0.0


@runtime_checkable
class SamplerMaker(Protocol):
    """Makes the sampler of a run from the bundle's scheduler_config.json and what is chosen."""

    def __call__(
        self, config_path: Path, choice: SchedulerChoice, *, num_inference_steps: int
    ) -> Sampler:
        """The sampler.

        Raises:
            ScheduleError: the config or the choice cannot be followed.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerKind:
    """What is known of a scheduler without a config.

    Attributes:
        class_name: diffusers' class.
        summary: one line for people.
        algorithm_type: what the name itself says of that setting.
    """

    class_name: str
    summary: str
    algorithm_type: str | None = None


SCHEDULERS: Mapping[str, SchedulerKind] = MappingProxyType(
    {
        "euler": SchedulerKind(
            class_name="EulerDiscreteScheduler",
            summary="Euler's method, SDXL's own",
        ),
        "euler-ancestral": SchedulerKind(
            class_name="EulerAncestralDiscreteScheduler",
            summary="Euler's method with fresh noise at every step",
        ),
        "heun": SchedulerKind(
            class_name="HeunDiscreteScheduler",
            summary="order 2, two evaluations for each level",
        ),
        "lms": SchedulerKind(
            class_name="LMSDiscreteScheduler", summary="linear multistep, order 4"
        ),
        "ddim": SchedulerKind(class_name="DDIMScheduler", summary="DDIM, with --eta noise"),
        "ddpm": SchedulerKind(
            class_name="DDPMScheduler",
            summary="the training's own noise at every step",
        ),
        "pndm": SchedulerKind(
            class_name="PNDMScheduler", summary="linear multistep on DDIM's curve"
        ),
        "dpmpp-2m": SchedulerKind(
            class_name="DPMSolverMultistepScheduler",
            summary="DPM-Solver++, multistep",
            algorithm_type="dpmsolver++",
        ),
        "dpmpp-2m-sde": SchedulerKind(
            class_name="DPMSolverMultistepScheduler",
            summary="DPM-Solver++, multistep, with fresh noise at every step",
            algorithm_type="sde-dpmsolver++",
        ),
        "unipc": SchedulerKind(
            class_name="UniPCMultistepScheduler", summary="predictor and corrector, multistep"
        ),
        "lcm": SchedulerKind(
            class_name="LCMScheduler",
            summary="for latent consistency models, 1 to 8 steps",
        ),
        "tcd": SchedulerKind(
            class_name="TCDScheduler",
            summary="for trajectory consistency models, with --eta noise",
        ),
    }
)
"""Every scheduler by the name that the command line knows it by."""


def read_chosen_config(config_path: Path, choice: SchedulerChoice) -> SchedulerConfig:
    """The bundle's scheduler config, for the scheduler that was chosen.

    Raises:
        ScheduleError: an unknown scheduler, or a spacing that it does not have.
    """
    content = read_scheduler_content(config_path)
    kind = None if choice.name is None else _kind(choice.name)
    class_name = None if kind is None else kind.class_name
    if kind is not None and kind.algorithm_type is not None:
        content["algorithm_type"] = kind.algorithm_type
    if choice.sigma_spacing is not None:
        named = class_name or str(content.get("_class_name", SchedulerConfig().class_name))
        setting = spacing_setting(choice.sigma_spacing)
        if setting not in class_settings(named):
            raise ScheduleError(
                f"sigma spacing: got {choice.sigma_spacing} for {named}, which has none of it."
            )
        content |= {spacing_setting(spacing): False for spacing in SIGMA_SPACINGS}
        content[setting] = True
    return scheduler_config(content, class_name=class_name, where=str(config_path))


def chosen_sigmas(
    choice: SchedulerChoice, config: SchedulerConfig, *, num_inference_steps: int
) -> tuple[float, ...]:
    """The noise levels that were chosen, 0 at their end; empty where they are the scheduler's.

    Raises:
        ScheduleError: levels that cannot be, or chosen in two ways.
    """
    if choice.discretization is None:
        return choice.sigmas
    if choice.sigmas or choice.timesteps or choice.sigma_spacing is not None:
        raise ScheduleError(
            "sigmas: got a discretization beside given steps or a spacing, want one of them."
        )
    if isinstance(choice.discretization, LegacyDdpmDiscretization):
        return (*legacy_ddpm_sigmas(config, count=num_inference_steps).tolist(), 0.0)
    edm, training = choice.discretization, training_sigmas(config)
    levels = karras_sigmas(
        sigma_max=float(training.max()) if edm.sigma_max is None else edm.sigma_max,
        sigma_min=float(training.min()) if edm.sigma_min is None else edm.sigma_min,
        rho=edm.rho,
        count=num_inference_steps,
    )
    return (*levels.tolist(), 0.0)


def read_sampler(
    config_path: Path, choice: SchedulerChoice, *, num_inference_steps: int
) -> Sampler:
    """The sampler of a run from the bundle's scheduler_config.json and what is chosen.

    Raises:
        ScheduleError: the config or the choice cannot be followed.
    """
    config = read_chosen_config(config_path, choice)
    steps = Steps(
        num_inference_steps=num_inference_steps,
        timesteps=choice.timesteps,
        sigmas=chosen_sigmas(choice, config, num_inference_steps=num_inference_steps),
    )
    return make_sampler(config, steps, eta=choice.eta)


def _kind(name: str) -> SchedulerKind:
    if name not in SCHEDULERS:
        raise ScheduleError(
            f"scheduler: got {name!r}, want one of {', '.join(SCHEDULERS)}, or with diffusers "
            "installed, diffusers: and the name of one of its classes."
        )
    return SCHEDULERS[name]
