"""From a scheduler's settings and the steps that are asked for to the noise levels of one run.

Three families, by where diffusers' classes put their steps and how they scale their latents:
k-diffusion's sigmas, whole training timesteps, and DPM-Solver's.
"""

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.schedule import Schedule
from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.sampling.sigma_spacing import respaced_sigmas
from triptych.sampling.timestep_spacing import (
    Steps,
    checked_count,
    given_sigmas,
    multistep_timesteps,
    spaced_timesteps,
)
from triptych.sampling.training import (
    finite_signal,
    rounded_alphas_cumprod,
    sigmas_from_signal,
    timesteps_from_sigmas,
    training_sigmas,
)
from triptych.types import Array, Sigmas, Timesteps


def exploding_schedule(config: SchedulerConfig, steps: Steps) -> Schedule:
    """k-diffusion's: fractional timesteps, and sigmas that may be spaced on their own.

    Raises:
        ScheduleError: steps or sigmas that cannot be.

    Source:
        diffusers 0.39 scheduling_euler_discrete.py, set_timesteps and init_noise_sigma. Same
        numbers: tests/reference/test_solvers_against_diffusers.py.
    """
    training = training_sigmas(config)
    if steps.sigmas:
        sigmas = given_sigmas(steps.sigmas)
        timesteps = timesteps_from_sigmas(sigmas[:-1], training)
    else:
        timesteps, sigmas = _exploding_levels(config, steps, training)
    if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
        timesteps = 0.25 * np.log(sigmas[:-1])
    sigma_max = float(sigmas.max())
    # Leading spacing starts below the last timestep, so the first latents keep a unit of data
    # variance.
    leading = config.timestep_spacing == "leading"
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        sigmas=sigmas,
        init_noise_sigma=float(np.sqrt(sigma_max**2 + 1)) if leading else sigma_max,
        prediction_type=config.prediction_type,
        num_train_timesteps=config.num_train_timesteps,
        clip_range=clip_range(config),
    )


def training_schedule(
    config: SchedulerConfig, timesteps: Timesteps, *, final_sigma: float, clip: float | None
) -> Schedule:
    """Whole training timesteps at their own levels, for latents of unit variance.

    Args:
        config: the training schedule and the prediction type.
        timesteps: whole, descending or standing still.
        final_sigma: the level after the last step.
        clip: the range of estimates of x0.

    Raises:
        ScheduleError: the U-Net would have to tell the noise of latents that are all noise.
    """
    signal = rounded_alphas_cumprod(config)
    index = timesteps.astype(np.int64)
    if config.prediction_type == "epsilon" and not signal[index].all():
        raise ScheduleError(
            "rescale_betas_zero_snr: got prediction_type epsilon at the last timestep, where no "
            "signal is left, want v_prediction, or steps that do not reach it."
        )
    sigmas = sigmas_from_signal(finite_signal(signal))[index]
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        sigmas=np.append(sigmas, np.float32(final_sigma)),
        init_noise_sigma=1.0,
        prediction_type=config.prediction_type,
        num_train_timesteps=config.num_train_timesteps,
        variance="preserved",
        clip_range=clip,
    )


def multistep_schedule(config: SchedulerConfig, steps: Steps) -> Schedule:
    """DPM-Solver's: whole timesteps, or sigmas spaced over the whole training schedule.

    Raises:
        ScheduleError: steps that cannot be, or two at one level, between which these solvers
            divide by nothing.

    Source:
        diffusers 0.39 scheduling_dpmsolver_multistep.py and scheduling_unipc_multistep.py,
        set_timesteps. Same numbers: tests/reference/test_solvers_against_diffusers.py.
    """
    training = training_sigmas(config)
    if config.sigma_spacing is not None:
        timesteps, sigmas = _respaced_levels(config, steps, training)
    else:
        timesteps = multistep_timesteps(config, steps, training)
        sigmas = training[timesteps.astype(np.int64)]
    if (np.diff(sigmas) >= 0).any():
        raise ScheduleError(
            f"num_inference_steps: got {len(sigmas)}, want fewer: "
            "of so many, several are at the same noise level."
        )
    # diffusers' UniPC ends where its own sigmas do, DPM-Solver where the training schedule does.
    own = config.class_name == "UniPCMultistepScheduler" and config.sigma_spacing is not None
    least = sigmas[-1] if own else training[0]
    last = 0.0 if config.final_sigmas_type == "zero" else float(least)
    return Schedule(
        timesteps=np.trunc(timesteps).astype(np.float32),
        sigmas=np.append(sigmas, last).astype(np.float32),
        init_noise_sigma=1.0,
        prediction_type=config.prediction_type,
        num_train_timesteps=config.num_train_timesteps,
        variance="preserved",
    )


def strided_sigmas(config: SchedulerConfig, timesteps: Timesteps, *, stride: int) -> Array:
    """The level that lies a fixed number of training timesteps below each of some timesteps.

    Where that is before the first training timestep: no noise at all with `set_alpha_to_one`,
    otherwise the least of training.

    Source: diffusers 0.39, prev_timestep and final_alpha_cumprod of DDIM and PNDM.
    """
    training = sigmas_from_signal(finite_signal(rounded_alphas_cumprod(config)))
    targets = timesteps.astype(np.int64) - stride
    least = np.float32(0) if config.set_alpha_to_one else training[0]
    return np.where(targets >= 0, training[np.maximum(targets, 0)], least)


def clip_range(config: SchedulerConfig) -> float | None:
    """What estimates of x0 are clipped to, if they are."""
    return config.clip_sample_range if config.clip_sample else None


def _exploding_levels(
    config: SchedulerConfig, steps: Steps, training: Array
) -> tuple[Timesteps, Sigmas]:
    _refuse_timesteps_with_spacing(config, steps)
    timesteps = spaced_timesteps(config, steps).astype(np.float32)
    if config.interpolation_type == "log_linear":
        ends = np.log(training[-1]), np.log(training[0])
        sigmas = np.exp(np.linspace(*ends, len(timesteps) + 1))
    else:
        sigmas = np.interp(timesteps, np.arange(len(training)), training)
    if config.sigma_spacing is not None:
        ends = float(sigmas[0]), float(sigmas[-1])
        sigmas = _respaced(config, ends, count=len(timesteps))
        timesteps = timesteps_from_sigmas(sigmas, training)
    last = 0.0 if config.final_sigmas_type == "zero" else training[0]
    # log_linear brings its own end: diffusers appends another after it, which no step reaches.
    levels = np.append(sigmas, last)[: len(timesteps) + 1]
    return timesteps, levels.astype(np.float32)


def _respaced_levels(
    config: SchedulerConfig, steps: Steps, training: Array
) -> tuple[Timesteps, Array]:
    _refuse_timesteps_with_spacing(config, steps)
    count = checked_count(config, steps)
    ends = float(training[-1]), float(training[0])
    sigmas = _respaced(config, ends, count=count)
    timesteps = timesteps_from_sigmas(sigmas, training)
    cosine = config.beta_schedule == "squaredcos_cap_v2"
    unipc = config.class_name == "UniPCMultistepScheduler"
    if config.sigma_spacing == "karras" or config.sigma_spacing == "lu":
        timesteps = timesteps if cosine and not unipc else np.round(timesteps)
    return timesteps, sigmas


def _respaced(config: SchedulerConfig, ends: tuple[float, float], *, count: int) -> Array:
    """Sigmas between the config's ends, or where it has none, the given ones."""
    if config.sigma_spacing is None:
        raise ScheduleError("sigmas: got no spacing, want one to space them by.")
    return respaced_sigmas(
        config.sigma_spacing,
        sigma_max=ends[0] if config.sigma_max is None else config.sigma_max,
        sigma_min=ends[1] if config.sigma_min is None else config.sigma_min,
        count=count,
    )


def _refuse_timesteps_with_spacing(config: SchedulerConfig, steps: Steps) -> None:
    if steps.timesteps and config.sigma_spacing is not None:
        raise ScheduleError(
            f"timesteps: got {len(steps.timesteps)} with {config.sigma_spacing} sigmas, which "
            "choose their own. Give one or the other."
        )
