"""Which schedulers there are, and the noise levels of one."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

from triptych.sampling.samplers import TAKES, GivenSteps
from triptych.sampling.schedule import Schedule
from triptych.sampling.scheduler_config import (
    SIGMA_SPACINGS,
    SigmaSpacing,
    class_settings,
    spacing_setting,
)
from triptych.sampling.schedulers import SCHEDULERS, SchedulerChoice
from triptych.workflows.diffusers_schedulers import read_any_sampler

SDXL_CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
"""Scheduler config of SDXL base 1.0. Source: stabilityai/stable-diffusion-xl-base-1.0,
scheduler/scheduler_config.json, without what is None or diffusers' default."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KnownScheduler:
    """One scheduler of triptych's own.

    Attributes:
        name: on the command line.
        class_name: diffusers' class of the same numbers.
        summary: one line for people.
        sigma_spacings: how its noise levels can be spaced besides by its timesteps.
        takes: what it can go through instead of a number of steps.
    """

    name: str
    class_name: str
    summary: str
    sigma_spacings: tuple[SigmaSpacing, ...]
    takes: tuple[GivenSteps, ...]

    def as_json(self) -> dict[str, object]:
        """For scripts."""
        return asdict(self)


def known_schedulers() -> tuple[KnownScheduler, ...]:
    """Every scheduler of triptych's own."""
    return tuple(
        KnownScheduler(
            name=name,
            class_name=kind.class_name,
            summary=kind.summary,
            sigma_spacings=tuple(
                spacing
                for spacing in SIGMA_SPACINGS
                if spacing_setting(spacing) in class_settings(kind.class_name)
            ),
            takes=TAKES.get(kind.class_name, ()),
        )
        for name, kind in SCHEDULERS.items()
    )


def schedule_of(
    choice: SchedulerChoice, *, bundle: Path | None, num_inference_steps: int
) -> Schedule:
    """The noise levels of a run with a bundle's scheduler config, or with SDXL base 1.0's.

    Raises:
        ScheduleError: the config or the choice cannot be followed.
        MissingDependencyError: a diffusers scheduler is asked for, and diffusers not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        if bundle is None:
            path = Path(folder) / "scheduler_config.json"
            path.write_text(json.dumps(SDXL_CONFIG), encoding="utf-8")
        else:
            path = bundle / "scheduler" / "scheduler_config.json"
        sampler = read_any_sampler(path, choice, num_inference_steps=num_inference_steps)
    return sampler.schedule


def schedule_as_json(schedule: Schedule) -> dict[str, object]:
    """A schedule for scripts."""
    return {
        "num_inference_steps": schedule.num_inference_steps,
        "timesteps": [float(timestep) for timestep in schedule.timesteps],
        "sigmas": [float(sigma) for sigma in schedule.sigmas],
        "init_noise_sigma": schedule.init_noise_sigma,
        "variance": schedule.variance,
        "prediction_type": schedule.prediction_type,
    }
