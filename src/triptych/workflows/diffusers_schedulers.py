"""diffusers' own schedulers by name, for those that triptych does not have."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from triptych.dependencies import import_optional
from triptych.errors import ScheduleError
from triptych.sampling.samplers import Sampler
from triptych.sampling.schedule import Schedule
from triptych.sampling.scheduler_config import (
    SIGMA_SPACINGS,
    PredictionType,
    read_scheduler_content,
    scheduler_config,
    spacing_setting,
)
from triptych.sampling.schedulers import SchedulerChoice, chosen_sigmas, read_sampler
from triptych.types import Array
from triptych.workflows.diffusers_solver import (
    DiffusersScheduler,
    DiffusersSolver,
    extra_arguments,
)

PREFIX = "diffusers:"
"""What a scheduler's name begins with when it is one of diffusers' classes."""

_REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""How diffusers' schedulers say that they cannot, or show that they are not made for this."""


def read_any_sampler(
    config_path: Path, choice: SchedulerChoice, *, num_inference_steps: int
) -> Sampler:
    """The sampler of a run, with triptych's scheduler, or with diffusers' where its name says so.

    Raises:
        ScheduleError: the config or the choice cannot be followed.
        MissingDependencyError: diffusers is asked for and not installed.
    """
    name = choice.name or ""
    if not name.startswith(PREFIX):
        return read_sampler(config_path, choice, num_inference_steps=num_inference_steps)
    content = read_scheduler_content(config_path)
    training = scheduler_config(content, class_name=None, where=str(config_path))
    sigmas = chosen_sigmas(choice, training, num_inference_steps=num_inference_steps)
    choice = replace(choice, sigmas=sigmas, discretization=None)
    scheduler = _made(name.removeprefix(PREFIX), content, choice)
    _set_steps(scheduler, choice, num_inference_steps)
    schedule = _schedule(scheduler, choice.eta)
    return Sampler(schedule=schedule, solver=DiffusersSolver(scheduler=scheduler, eta=choice.eta))


def diffusers_scheduler_names() -> tuple[str, ...]:
    """The classes of diffusers that can be tried: those that are told what the U-Net predicts.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    schedulers = import_optional("diffusers.schedulers", "torch", extra="export")
    names = []
    for name in dir(schedulers):
        made = getattr(schedulers, name)
        if inspect.isclass(made) and name.endswith("Scheduler") and hasattr(made, "from_config"):
            told = inspect.signature(made.__init__).parameters
            names += [name] if "prediction_type" in told else []
    return tuple(names)


def _made(name: str, content: Mapping[str, object], choice: SchedulerChoice) -> DiffusersScheduler:
    if name not in diffusers_scheduler_names():
        raise ScheduleError(
            f"scheduler: got {PREFIX}{name}, want one of "
            f"{', '.join(PREFIX + known for known in diffusers_scheduler_names())}."
        )
    made = getattr(import_optional("diffusers.schedulers", "torch", extra="export"), name)
    settings: dict[str, object] = {}
    if choice.sigma_spacing is not None:
        told = inspect.signature(made.__init__).parameters
        asked = spacing_setting(choice.sigma_spacing)
        if asked not in told:
            raise ScheduleError(
                f"sigma spacing: got {choice.sigma_spacing} for {name}, which has none of it."
            )
        every = {spacing_setting(spacing) for spacing in SIGMA_SPACINGS}
        settings = {setting: setting == asked for setting in every & set(told)}
    try:
        scheduler = made.from_config(dict(content), **settings)
    except _REFUSALS as error:
        raise _refusal(name, error) from error
    if not isinstance(scheduler, DiffusersScheduler):
        raise ScheduleError(f"scheduler: got {PREFIX}{name}, which is not one for latents.")
    return scheduler


def _set_steps(
    scheduler: DiffusersScheduler, choice: SchedulerChoice, num_inference_steps: int
) -> None:
    """As diffusers' `retrieve_timesteps`."""
    if choice.timesteps and choice.sigmas:
        raise ScheduleError("steps: got timesteps and sigmas, want one of them.")
    given: dict[str, object] = {}
    for name, values in (("timesteps", choice.timesteps), ("sigmas", choice.sigmas)):
        if values:
            given[name] = list(values)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    refused = [name for name in given if name not in takes]
    if refused:
        raise ScheduleError(
            f"{refused[0]}: got some for {type(scheduler).__name__}, which takes none."
        )
    try:
        if given:
            scheduler.set_timesteps(**given)
        else:
            scheduler.set_timesteps(num_inference_steps)
    except _REFUSALS as error:
        raise _refusal(type(scheduler).__name__, error) from error
    begin = getattr(scheduler, "set_begin_index", None)
    if begin is not None:
        begin(0)  # as the pipeline does


def _schedule(scheduler: DiffusersScheduler, eta: float) -> Schedule:
    """What the loop must know of a scheduler, found out by going through it once.

    Raises:
        ScheduleError: it scales its latents in a way that SDXL's U-Net was not trained for.
    """
    name = type(scheduler).__name__
    timesteps = scheduler.timesteps.double().numpy()
    factors = _input_factors(scheduler, eta)
    preserved = bool((factors == 1).all())
    if not preserved and not (factors < 1).all():
        raise ScheduleError(
            f"scheduler: got {PREFIX}{name}, which scales the U-Net's sample by up to "
            f"{factors.max():g}, want one for latents that are SDXL's."
        )
    if timesteps[-1] > timesteps[0]:
        raise ScheduleError(f"scheduler: got {PREFIX}{name}, whose timesteps rise.")
    sigmas = _sigmas(scheduler, timesteps) if preserved else np.sqrt(1 / factors**2 - 1)
    own = getattr(scheduler, "sigmas", None)
    last = 0.0 if own is None else float(own[-1])
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        sigmas=np.append(sigmas, last).astype(np.float32),
        init_noise_sigma=float(scheduler.init_noise_sigma),
        prediction_type=_prediction_type(scheduler),
        variance="preserved" if preserved else "exploding",
    )


def _input_factors(scheduler: DiffusersScheduler, eta: float) -> Array:
    """What the latents are multiplied by for the U-Net at each step."""
    import torch

    probe = copy.deepcopy(scheduler)
    extra = extra_arguments(probe, (torch.Generator("cpu").manual_seed(0),), eta)
    ones, factors = torch.ones(1, 4, 8, 8), []
    try:
        for timestep in scheduler.timesteps:
            factors.append(float(probe.scale_model_input(ones, timestep)[0, 0, 0, 0]))
            probe.step(torch.zeros_like(ones), timestep, ones, **extra)
    except _REFUSALS as error:
        raise _refusal(type(scheduler).__name__, error) from error
    return np.array(factors)


def _sigmas(scheduler: DiffusersScheduler, timesteps: Array) -> Array:
    """Noise levels of latents of unit variance."""
    own = getattr(scheduler, "sigmas", None)
    if own is not None and len(own) > len(timesteps):
        return np.asarray(own[: len(timesteps)].double().numpy())
    signal = getattr(scheduler, "alphas_cumprod", None)
    if signal is None:
        raise ScheduleError(
            f"scheduler: got {PREFIX}{type(scheduler).__name__}, which has neither sigmas nor "
            "alphas_cumprod: its noise levels cannot be told."
        )
    at = signal.double().numpy()[timesteps.astype(np.int64)]
    return np.asarray(np.sqrt((1 - at) / np.maximum(at, 1e-16)))


def _prediction_type(scheduler: DiffusersScheduler) -> PredictionType:
    told = scheduler.config["prediction_type"]
    if told == "epsilon":
        return "epsilon"
    if told == "v_prediction":
        return "v_prediction"
    raise ScheduleError(f"prediction_type: got {told}, want epsilon or v_prediction.")


def _refusal(name: str, error: Exception) -> ScheduleError:
    return ScheduleError(
        f"scheduler: got {PREFIX}{name}, which says: {type(error).__name__}: {error}"
    )
