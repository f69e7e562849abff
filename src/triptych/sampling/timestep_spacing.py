"""Where the steps of a run lie on the training schedule."""

from dataclasses import dataclass
from math import inf
from typing import final

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.types import Array, Timesteps


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Which steps to take: so many, or through given timesteps or sigmas.

    Attributes:
        num_inference_steps: how many; counts for nothing where one of the others is given.
        timesteps: on the training schedule, descending; empty leaves them to the config.
        sigmas: noise levels before each step and after the last, descending; as `timesteps`.
    """

    num_inference_steps: int = 50
    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()


def spaced_timesteps(config: SchedulerConfig, steps: Steps) -> Timesteps:
    """The given timesteps, or as many as are asked for, spaced as the config says; float64.

    Raises:
        ScheduleError: fewer than one step, more than the training schedule has, or given timesteps
            that do not descend or are not on it.

    Source: Lin et al. 2023, arXiv:2305.08891, table 2.
    """
    if steps.timesteps:
        return _given_timesteps(config, steps)
    count, total = checked_count(config, steps), config.num_train_timesteps
    match config.timestep_spacing:
        case "leading":
            ascending = np.arange(count, dtype=np.float64) * (total // count)
            descending: Array = ascending[::-1] + config.steps_offset
            return descending
        case "linspace":
            return np.linspace(0, total - 1, count)[::-1]
        case "trailing":
            # Rounding can make one more, at timestep -1, as for 61 steps; diffusers keeps it.
            spaced = np.round(np.arange(total, 0, -total / count)) - 1
            return spaced[:count]


def multistep_timesteps(config: SchedulerConfig, steps: Steps, training: Array) -> Timesteps:
    """As DPM-Solver spaces them: up to the last but one of one timestep more; whole, float64.

    Args:
        config: spacing, offset, and how little signal a run may start from.
        steps: how many, or which.
        training: sigma of every training timestep.

    Raises:
        ScheduleError: as `spaced_timesteps`.

    Source: diffusers 0.39 scheduling_dpmsolver_multistep.py, set_timesteps.
    """
    if steps.timesteps:
        return _given_timesteps(config, steps)
    count, total = checked_count(config, steps), config.num_train_timesteps
    clip = config.lambda_min_clipped
    last = total if clip == -inf else int(np.sum(-np.log(training) >= clip))
    match config.timestep_spacing:
        case "leading":
            ascending = np.arange(count + 1, dtype=np.float64) * (last // (count + 1))
            descending: Array = ascending[:0:-1] + config.steps_offset
            return descending
        case "linspace":
            return np.round(np.linspace(0, last - 1, count + 1))[:0:-1]
        case "trailing":
            spaced = np.round(np.arange(last, 0, -total / count)) - 1
            return spaced[:count]


def distilled_timesteps(config: SchedulerConfig, steps: Steps) -> Timesteps:
    """Some of the timesteps that a consistency model was distilled at; whole, float64.

    Raises:
        ScheduleError: as `spaced_timesteps`, or more steps than the model was distilled with.

    Source: diffusers 0.39 scheduling_lcm.py, set_timesteps; Luo et al. 2023, arXiv:2310.04378.
    """
    total, taught = config.num_train_timesteps, config.original_inference_steps
    if not 1 <= taught <= total:
        raise ScheduleError(f"original_inference_steps: got {taught}, want 1 to {total}.")
    if steps.timesteps:
        return _given_timesteps(config, steps)
    count = checked_count(config, steps)
    if count > taught:
        raise ScheduleError(
            f"num_inference_steps: got {count}, want at most the {taught} "
            "original_inference_steps that the model was distilled with."
        )
    descending = (np.arange(1, taught + 1, dtype=np.float64) * (total // taught) - 1)[::-1]
    chosen = np.floor(np.linspace(0, taught, num=count, endpoint=False))
    return descending[chosen.astype(np.int64)]


def checked_count(config: SchedulerConfig, steps: Steps) -> int:
    """The number of steps.

    Raises:
        ScheduleError: fewer than one, or more than the training schedule has.
    """
    count, total = steps.num_inference_steps, config.num_train_timesteps
    if not 1 <= count <= total:
        raise ScheduleError(
            f"num_inference_steps: got {count}, want 1 to {total}, "
            "the length of the training schedule."
        )
    return count


def given_sigmas(sigmas: tuple[float, ...]) -> Array:
    """Sigmas that a user gave, checked; float32.

    Raises:
        ScheduleError: fewer than two, or not falling, finite and above 0 until the last.
    """
    levels = np.array(sigmas, np.float32)
    falling = np.isfinite(levels).all() and (np.diff(levels) < 0).all()
    if len(levels) < 2 or not falling or levels[-1] < 0:
        raise ScheduleError(
            f"sigmas: got {', '.join(f'{level:g}' for level in sigmas)}, want at least two finite "
            "ones, descending: the level before each step, and the last step's end, such as 0."
        )
    return levels


def _given_timesteps(config: SchedulerConfig, steps: Steps) -> Timesteps:
    timesteps, last = np.array(steps.timesteps, np.float64), config.num_train_timesteps - 1
    inside = np.isfinite(timesteps).all() and timesteps[-1] >= 0 and timesteps[0] <= last
    if not inside or (np.diff(timesteps) >= 0).any():
        raise ScheduleError(
            f"timesteps: got {', '.join(f'{timestep:g}' for timestep in steps.timesteps)}, "
            f"want descending ones from 0 to {last}."
        )
    return timesteps
