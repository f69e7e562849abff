"""Noise schedules: from scheduler_config.json to the timesteps and sigmas of one run.

Computed in float64, given as float32 like diffusers' own. Nothing is hard-coded: every number is
read from the model's scheduler config.

Source:
    Spacings: Lin et al. 2023, arXiv:2305.08891, table 2. Same numbers as diffusers 0.39
    scheduling_euler_discrete.py, set_timesteps: tests/reference/test_schedule_against_diffusers.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

import msgspec
import numpy as np

from triptych.errors import ScheduleError
from triptych.types import Array, Latents, NoisePred, Sigmas, Timesteps

PredictionType: TypeAlias = Literal["epsilon", "v_prediction"]
"""epsilon: the U-Net predicts the noise. v_prediction: Salimans and Ho's velocity."""

TimestepSpacing: TypeAlias = Literal["leading", "linspace", "trailing"]
"""leading: SDXL's; never reaches the last timestep. linspace: both ends. trailing: from the end."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What triptych uses of a diffusers scheduler_config.json; the defaults are diffusers'.

    Attributes:
        class_name: diffusers' scheduler class, which names the solver.
        num_train_timesteps: length of the training schedule.
        beta_start: first beta.
        beta_end: last beta.
        beta_schedule: linear in beta, or in its square root ("scaled_linear", SDXL's).
        prediction_type: what the U-Net predicts.
        timestep_spacing: where the steps lie on the training schedule.
        steps_offset: added to leading timesteps.
        interpolation_type: how sigmas between training timesteps are found.
        final_sigmas_type: where the run ends: at zero, or at the smallest training sigma.
        use_karras_sigmas: Karras spacing of the sigmas.
        use_exponential_sigmas: exponential spacing of the sigmas.
        use_beta_sigmas: beta-distributed spacing of the sigmas.
        rescale_betas_zero_snr: rescale the betas to zero terminal signal-to-noise ratio.
        timestep_type: discrete timesteps, or continuous ones from the sigmas.
        trained_betas: the betas themselves, instead of a schedule.
    """

    class_name: str = "EulerDiscreteScheduler"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "linspace"
    steps_offset: int = 0
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    rescale_betas_zero_snr: bool = False
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    trained_betas: tuple[float, ...] | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The noise levels of one run.

    Attributes:
        timesteps: what the U-Net is told at each step, descending, on the training schedule.
        sigmas: noise level before each step and after the last: sqrt((1 - abar) / abar).
        init_noise_sigma: factor on the first unit noise.
        prediction_type: what the U-Net predicts.
    """

    timesteps: Timesteps
    sigmas: Sigmas
    init_noise_sigma: float
    prediction_type: PredictionType

    @property
    def num_inference_steps(self) -> int:
        """Steps of the run."""
        return len(self.timesteps)


def read_scheduler_config(path: Path) -> SchedulerConfig:
    """Read scheduler_config.json.

    Raises:
        ScheduleError: the file is missing, or asks for something that is not known.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        name = content.get("_class_name", SchedulerConfig().class_name)
        return msgspec.convert({**content, "class_name": name}, type=SchedulerConfig)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ScheduleError(f"{path}: got {error}, want a diffusers scheduler config.") from error


def make_schedule(config: SchedulerConfig, *, num_inference_steps: int) -> Schedule:
    """The timesteps and sigmas of a run.

    Raises:
        ScheduleError: fewer than one step, more than the training schedule has, or a setting
            that no solver here supports.
    """
    if not 1 <= num_inference_steps <= config.num_train_timesteps:
        raise ScheduleError(
            f"num_inference_steps: got {num_inference_steps}, "
            f"want 1 to {config.num_train_timesteps}, the length of the training schedule."
        )
    _refuse_unsupported(config)
    timesteps = _spaced_timesteps(config, num_inference_steps)
    sigmas = _sigmas_at(config, timesteps)
    sigma_max = float(sigmas.max())
    # diffusers scheduling_euler_discrete.py, init_noise_sigma: leading spacing starts below the
    # last timestep, so the first latents keep a unit of data variance.
    leading = config.timestep_spacing == "leading"
    return Schedule(
        timesteps=timesteps.astype(np.float32),
        sigmas=sigmas,
        init_noise_sigma=float(np.sqrt(sigma_max**2 + 1)) if leading else sigma_max,
        prediction_type=config.prediction_type,
    )


def alphas_cumprod(config: SchedulerConfig) -> Array:
    """Cumulative signal power abar_t for every training timestep, float64.

    Source: Ho et al. 2020, arXiv:2006.11239; scaled_linear as in latent diffusion.
    """
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = np.array(config.trained_betas, np.float64)
    elif config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, steps)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, steps) ** 2
    else:
        betas = _cosine_betas(steps)
    return np.cumprod(1.0 - betas)


def scale_model_input(latents: Latents, schedule: Schedule, index: int) -> Latents:
    """The U-Net's sample: latents brought to unit variance, x / sqrt(sigma^2 + 1).

    Raises:
        ScheduleError: `index` is outside the schedule.

    Source: Karras et al. 2022, arXiv:2206.00364, c_in for variance-exploding models.
    """
    sigma = _sigma(schedule, index)
    sample: Latents = (latents / np.sqrt(sigma**2 + 1)).astype(np.float32)
    return sample


def denoised_from_noise_pred(
    noise_pred: NoisePred, latents: Latents, schedule: Schedule, index: int
) -> Array:
    """The model's estimate of x0 at one step, float64.

    Raises:
        ScheduleError: `index` is outside the schedule.

    Source: diffusers scheduling_euler_discrete.py, step, pred_original_sample.
    """
    sigma = _sigma(schedule, index)
    x, prediction = latents.astype(np.float64), noise_pred.astype(np.float64)
    denoised: Array
    if schedule.prediction_type == "epsilon":
        denoised = x - sigma * prediction
    else:
        denoised = x / (sigma**2 + 1) - prediction * sigma / np.sqrt(sigma**2 + 1)
    return denoised


def _sigma(schedule: Schedule, index: int) -> float:
    if not 0 <= index < schedule.num_inference_steps:
        raise ScheduleError(
            f"step index: got {index}, want 0 to {schedule.num_inference_steps - 1}."
        )
    return float(schedule.sigmas[index])


def _spaced_timesteps(config: SchedulerConfig, num_inference_steps: int) -> Array:
    total = config.num_train_timesteps
    match config.timestep_spacing:
        case "leading":
            ratio = total // num_inference_steps
            ascending = np.arange(num_inference_steps, dtype=np.float64) * ratio
            descending: Array = ascending[::-1] + config.steps_offset
            return descending
        case "linspace":
            ascending = np.linspace(0, total - 1, num_inference_steps, dtype=np.float32)
            return ascending[::-1].astype(np.float64)
        case "trailing":
            # Rounding can make one more, at timestep -1, as for 61 steps; diffusers keeps it.
            spaced = np.round(np.arange(total, 0, -total / num_inference_steps)) - 1
            return spaced[:num_inference_steps]


def _sigmas_at(config: SchedulerConfig, timesteps: Timesteps) -> Sigmas:
    """Sigmas at the timesteps, and the one the run ends at."""
    abar = alphas_cumprod(config)
    training = np.sqrt((1 - abar) / abar)
    if config.interpolation_type == "log_linear":
        # Ends at the smallest training sigma, whatever final_sigmas_type says: diffusers makes
        # one more sigma than there are steps and never reaches what it appends after that.
        ends = np.log(training[-1]), np.log(training[0])
        return np.exp(np.linspace(*ends, len(timesteps) + 1)).astype(np.float32)
    sigmas = np.interp(timesteps, np.arange(len(training)), training)
    last = 0.0 if config.final_sigmas_type == "zero" else training[0]
    return np.append(sigmas, last).astype(np.float32)


def _cosine_betas(steps: int) -> Array:
    """Nichol and Dhariwal 2021, arXiv:2102.09672; capped at 0.999."""
    edges = np.arange(steps + 1) / steps
    abar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: Array = np.minimum(1 - abar[1:] / abar[:-1], 0.999)
    return betas


def _refuse_unsupported(config: SchedulerConfig) -> None:
    settings = {
        "use_karras_sigmas": bool(config.use_karras_sigmas),
        "use_exponential_sigmas": bool(config.use_exponential_sigmas),
        "use_beta_sigmas": bool(config.use_beta_sigmas),
        "rescale_betas_zero_snr": config.rescale_betas_zero_snr,
        "timestep_type continuous": config.timestep_type == "continuous",
    }
    asked = [name for name, on in settings.items() if on]
    if asked:
        raise ScheduleError(
            f"scheduler_config.json: got {', '.join(asked)}, which triptych's "
            "schedules do not have yet. Set it to false in the bundle's scheduler config."
        )
