"""A scheduler config made into noise levels and a solver: one maker for each diffusers class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, final

import numpy as np

from triptych.errors import ScheduleError
from triptych.sampling.discretization import (
    clip_range,
    exploding_schedule,
    multistep_schedule,
    strided_sigmas,
    training_schedule,
)
from triptych.sampling.schedule import Schedule
from triptych.sampling.scheduler_config import SchedulerConfig
from triptych.sampling.solvers.base import Solver
from triptych.sampling.solvers.ddim import DdimSolver
from triptych.sampling.solvers.ddpm import DdpmSolver
from triptych.sampling.solvers.dpm_multistep import DpmMultistepSolver
from triptych.sampling.solvers.euler import EulerSolver
from triptych.sampling.solvers.euler_ancestral import EulerAncestralSolver
from triptych.sampling.solvers.heun import HeunSolver, heun_schedule
from triptych.sampling.solvers.lcm import LcmSolver
from triptych.sampling.solvers.lms import LmsSolver
from triptych.sampling.solvers.pndm import NUM_RUNGE_KUTTA_STEPS, PndmSolver, pndm_timesteps
from triptych.sampling.solvers.tcd import TcdSolver
from triptych.sampling.solvers.unipc import UniPcSolver
from triptych.sampling.timestep_spacing import Steps, distilled_timesteps, spaced_timesteps
from triptych.sampling.training import rounded_alphas_cumprod, training_sigmas

GivenSteps: TypeAlias = Literal["timesteps", "sigmas"]
"""What a run may go through instead of a number of steps."""

TAKES: Mapping[str, tuple[GivenSteps, ...]] = MappingProxyType(
    {
        "EulerDiscreteScheduler": ("timesteps", "sigmas"),
        "HeunDiscreteScheduler": ("timesteps",),
        "DDPMScheduler": ("timesteps",),
        "DPMSolverMultistepScheduler": ("timesteps",),
        "LCMScheduler": ("timesteps",),
        "TCDScheduler": ("timesteps",),
    }
)
"""The classes whose `set_timesteps` takes more than a number of steps."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """The noise levels of a run, and the solver that goes through them."""

    schedule: Schedule
    solver: Solver


def make_sampler(config: SchedulerConfig, steps: Steps, *, eta: float = 0.0) -> Sampler:
    """The noise levels and the solver of a scheduler config.

    Args:
        config: which scheduler, and its settings.
        steps: how many steps, or which.
        eta: share of noise for DDIM and TCD, 0 to 1; the others do not look at it, as in
            diffusers' pipelines.

    Raises:
        ScheduleError: steps that cannot be, or settings that no solver here has.
    """
    if not 0 <= eta <= 1:
        raise ScheduleError(f"eta: got {eta:g}, want 0 to 1.")
    takes = TAKES.get(config.class_name, ())
    if steps.timesteps and steps.sigmas:
        raise ScheduleError("steps: got timesteps and sigmas, want one of them.")
    for name, given in (("timesteps", steps.timesteps), ("sigmas", steps.sigmas)):
        if given and name not in takes:
            raise ScheduleError(
                f"{name}: got {len(given)} for {config.class_name}, which takes "
                f"{' or '.join(takes) or 'only num_inference_steps'}."
            )
    if config.class_name not in _MAKERS:
        raise ScheduleError(
            f"scheduler: got {config.class_name!r}, want one of {', '.join(_MAKERS)}."
        )
    return _MAKERS[config.class_name](config, steps, eta)


def make_schedule(
    config: SchedulerConfig,
    *,
    num_inference_steps: int = 50,
    timesteps: tuple[float, ...] = (),
    sigmas: tuple[float, ...] = (),
) -> Schedule:
    """The noise levels of a scheduler config, without its solver.

    Raises:
        ScheduleError: as `make_sampler`.
    """
    steps = Steps(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
    return make_sampler(config, steps).schedule


def _euler(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    return Sampler(schedule=exploding_schedule(config, steps), solver=EulerSolver())


def _euler_ancestral(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    return Sampler(schedule=exploding_schedule(config, steps), solver=EulerAncestralSolver())


def _heun(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    schedule = heun_schedule(exploding_schedule(config, steps))
    return Sampler(schedule=schedule, solver=HeunSolver())


def _lms(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    return Sampler(schedule=exploding_schedule(config, steps), solver=LmsSolver())


def _ddim(config: SchedulerConfig, steps: Steps, eta: float) -> Sampler:
    timesteps = np.round(spaced_timesteps(config, steps))
    stride = config.num_train_timesteps // steps.num_inference_steps
    targets = strided_sigmas(config, timesteps, stride=stride)
    schedule = training_schedule(
        config, timesteps, final_sigma=float(targets[-1]), clip=clip_range(config)
    )
    return Sampler(schedule=schedule, solver=DdimSolver(targets=targets, eta=eta))


def _ddpm(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    variances: Mapping[str | None, Literal["small", "large"]] = {
        "fixed_small": "small",
        "fixed_small_log": "small",
        "fixed_large": "large",
    }
    if config.variance_type not in variances:
        # diffusers takes the root of a negative logarithm for fixed_large_log.
        raise ScheduleError(
            f"variance_type: got {config.variance_type}, want fixed_small, fixed_small_log or "
            "fixed_large. Learned variances need a U-Net with twice the channels."
        )
    timesteps = np.round(spaced_timesteps(config, steps))
    schedule = training_schedule(config, timesteps, final_sigma=0.0, clip=clip_range(config))
    return Sampler(schedule=schedule, solver=DdpmSolver(variance=variances[config.variance_type]))


def _pndm(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    skip = config.skip_prk_steps
    if not skip and steps.num_inference_steps < 4:
        raise ScheduleError(
            f"num_inference_steps: got {steps.num_inference_steps} with skip_prk_steps false, "
            "want at least 4: three for the Runge-Kutta start and one after it."
        )
    spaced = np.round(spaced_timesteps(config, steps))
    stride = config.num_train_timesteps // steps.num_inference_steps
    timesteps = pndm_timesteps(spaced, stride=stride, skip_prk_steps=skip)
    final_sigma = float(strided_sigmas(config, timesteps[-1:], stride=stride)[0])
    signal = rounded_alphas_cumprod(config)
    solver = PndmSolver(
        signal=signal,
        final_signal=1.0 if config.set_alpha_to_one else float(signal[0]),
        stride=stride,
        num_runge_kutta_steps=0 if skip else NUM_RUNGE_KUTTA_STEPS,
    )
    schedule = training_schedule(config, timesteps, final_sigma=final_sigma, clip=None)
    return Sampler(schedule=schedule, solver=solver)


def _dpm_multistep(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    # Names of other classes' solvers, which `from_config` may bring, stand for the default here.
    algorithms = {"dpmsolver++": False, "deis": False, "sde-dpmsolver++": True}
    if config.algorithm_type not in algorithms:
        raise ScheduleError(
            f"algorithm_type: got {config.algorithm_type}, want dpmsolver++ or sde-dpmsolver++. "
            "With diffusers installed: --scheduler diffusers:DPMSolverMultistepScheduler."
        )
    if config.variance_type in ("learned", "learned_range"):
        raise ScheduleError(f"variance_type: got {config.variance_type}, want null.")
    if config.solver_type not in ("midpoint", "heun", "logrho", "bh1", "bh2"):
        raise ScheduleError(f"solver_type: got {config.solver_type}, want midpoint or heun.")
    solver = DpmMultistepSolver(
        order=config.solver_order,
        stochastic=algorithms[config.algorithm_type],
        second_order="heun" if config.solver_type == "heun" else "midpoint",
        lower_order_final=config.lower_order_final,
        euler_at_final=config.euler_at_final,
    )
    return Sampler(schedule=multistep_schedule(config, steps), solver=solver)


def _unipc(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    if config.solver_type not in ("bh1", "bh2", "midpoint", "heun", "logrho"):
        raise ScheduleError(f"solver_type: got {config.solver_type}, want bh1 or bh2.")
    schedule = multistep_schedule(config, steps)
    last, end = schedule.sigmas[-2:].tolist()
    if config.solver_order > 1 and not config.lower_order_final and end in (0, last):
        raise ScheduleError(
            f"lower_order_final: got false with a last step from sigma {last:g} to {end:g}, want "
            "true: higher orders divide by the length of the step in log sigma."
        )
    if not config.predict_x0 and end == 0:
        raise ScheduleError(
            "predict_x0: got false with final_sigmas_type zero, want sigma_min: the noise cannot "
            "be followed to where there is none."
        )
    solver = UniPcSolver(
        order=config.solver_order,
        scale="bh1" if config.solver_type == "bh1" else "bh2",
        predict_x0=config.predict_x0,
        lower_order_final=config.lower_order_final,
        uncorrected=config.disable_corrector,
    )
    return Sampler(schedule=schedule, solver=solver)


def _lcm(config: SchedulerConfig, steps: Steps, _eta: float) -> Sampler:
    timesteps = np.trunc(distilled_timesteps(config, steps))
    schedule = training_schedule(config, timesteps, final_sigma=0.0, clip=clip_range(config))
    return Sampler(schedule=schedule, solver=LcmSolver(timestep_scaling=config.timestep_scaling))


def _tcd(config: SchedulerConfig, steps: Steps, eta: float) -> Sampler:
    timesteps = np.trunc(distilled_timesteps(config, steps))
    following = np.append(timesteps[1:], 0).astype(np.float32)
    lower = np.floor(np.float32(1 - eta) * following).astype(np.int64)  # float32 as diffusers'
    training = training_sigmas(config)
    schedule = training_schedule(config, timesteps, final_sigma=float(training[0]), clip=None)
    return Sampler(schedule=schedule, solver=TcdSolver(targets=training[lower], eta=eta))


_MAKERS: Mapping[str, Callable[[SchedulerConfig, Steps, float], Sampler]] = {
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "LMSDiscreteScheduler": _lms,
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "DPMSolverMultistepScheduler": _dpm_multistep,
    "UniPCMultistepScheduler": _unipc,
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
}
