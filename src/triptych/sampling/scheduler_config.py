"""scheduler_config.json: what diffusers' scheduler classes are told, read and checked.

Only settings are here. What they mean is in training.py, discretization.py and solvers/.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal, TypeAlias, final, get_args

import msgspec

from triptych.errors import ScheduleError
from triptych.sampling.scheduler_classes import CLASS_SETTINGS

PredictionType: TypeAlias = Literal["epsilon", "v_prediction"]
"""epsilon: the U-Net predicts the noise. v_prediction: Salimans and Ho's velocity."""

TimestepSpacing: TypeAlias = Literal["leading", "linspace", "trailing"]
"""leading: SDXL's; never reaches the last timestep. linspace: both ends. trailing: from the end."""

SigmaSpacing: TypeAlias = Literal["karras", "exponential", "beta", "lu"]
"""How sigmas lie between the largest and the smallest, instead of at the spaced timesteps."""

SIGMA_SPACINGS: tuple[SigmaSpacing, ...] = get_args(SigmaSpacing)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The settings of one scheduler. Names are diffusers'; the defaults are its Euler class's.

    Settings that a class does not have keep their defaults here and are not looked at.

    Attributes:
        class_name: diffusers' scheduler class, which names the solver.
        num_train_timesteps: length of the training schedule.
        beta_start: first beta.
        beta_end: last beta.
        beta_schedule: linear in beta, or in its square root ("scaled_linear", SDXL's).
        trained_betas: the betas themselves, instead of a schedule.
        prediction_type: what the U-Net predicts.
        timestep_spacing: where the steps lie on the training schedule.
        steps_offset: added to leading timesteps.
        rescale_betas_zero_snr: rescale the betas to zero terminal signal-to-noise ratio.
        interpolation_type: how sigmas between training timesteps are found.
        final_sigmas_type: where the run ends: at zero, or at the smallest training sigma.
        use_karras_sigmas: Karras spacing of the sigmas.
        use_exponential_sigmas: exponential spacing of the sigmas.
        use_beta_sigmas: beta-distributed spacing of the sigmas.
        use_lu_lambdas: Lu's even spacing of log sigma.
        sigma_min: lower end of respaced sigmas; None takes the schedule's.
        sigma_max: upper end of respaced sigmas; None takes the schedule's.
        timestep_type: what the U-Net is told: training timesteps, or log sigma / 4.
        clip_sample: clip the estimate of x0.
        clip_sample_range: to plus and minus this.
        set_alpha_to_one: end at zero noise, not at the smallest training sigma.
        variance_type: DDPM's choice of the noise that it adds.
        skip_prk_steps: PNDM without its Runge-Kutta start.
        solver_order: most estimates that one step combines.
        algorithm_type: DPM-Solver++ as an ODE, or as an SDE.
        solver_type: how a second-order step is put together.
        lower_order_final: lower the order towards the end of short runs.
        euler_at_final: take the last step at order 1.
        lambda_min_clipped: least log of signal over noise that a run starts from.
        predict_x0: UniPC steps from estimates of x0, not of the noise.
        disable_corrector: UniPC's steps that are not corrected afterwards.
        original_inference_steps: steps that an LCM or TCD was distilled with.
        timestep_scaling: how fast LCM's boundary condition lets go of its input.
    """

    class_name: str = "EulerDiscreteScheduler"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    variance_type: str | None = None
    skip_prk_steps: bool = False
    solver_order: Literal[1, 2, 3] = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -inf
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    @property
    def sigma_spacing(self) -> SigmaSpacing | None:
        """How sigmas are respaced; None leaves them at the spaced timesteps."""
        asked = [name for name in SIGMA_SPACINGS if getattr(self, spacing_setting(name))]
        return asked[0] if asked else None


def spacing_setting(spacing: SigmaSpacing) -> str:
    """The name of the setting that asks for a spacing."""
    return "use_lu_lambdas" if spacing == "lu" else f"use_{spacing}_sigmas"


_COMMON = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "timestep_spacing", "steps_offset"),
)
_ONLY: Mapping[str, tuple[object, ...]] = {
    "thresholding": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    "solver_p": (None,),
}
"""Settings that some classes have, and the only values that mean something here."""


def class_settings(class_name: str) -> Mapping[str, object]:
    """Every setting that a scheduler class has, with its default.

    Raises:
        ScheduleError: no solver here stands for that class.
    """
    if class_name not in CLASS_SETTINGS:
        raise ScheduleError(
            f"scheduler: got {class_name!r}, want one of {', '.join(sorted(CLASS_SETTINGS))}. "
            f"With diffusers installed: --scheduler diffusers:{class_name}."
        )
    euler = SchedulerConfig()
    return {name: getattr(euler, name) for name in _COMMON} | dict(CLASS_SETTINGS[class_name])


def scheduler_config(
    content: Mapping[str, object], *, class_name: str | None = None, where: str = "scheduler config"
) -> SchedulerConfig:
    """The settings of a scheduler class in a config that may have been saved by another.

    As diffusers' `from_config`: what the class does not know is passed over, what the config does
    not say takes the class's default.

    Args:
        content: a scheduler_config.json.
        class_name: diffusers' class; None takes the config's own.
        where: names the config in errors.

    Raises:
        ScheduleError: a class that is not known, or a value that is not supported.
    """
    name = class_name or content.get("_class_name", SchedulerConfig().class_name)
    if not isinstance(name, str):
        raise ScheduleError(f"{where} _class_name: got {name!r}, want a scheduler's name.")
    defaults = class_settings(name)
    settings = {key: content.get(key, default) for key, default in defaults.items()}
    ignored = {"thresholding"} if name == "TCDScheduler" else set()  # its step never looks
    for key, allowed in _ONLY.items():
        if key not in ignored and settings.get(key, allowed[0]) not in allowed:
            raise ScheduleError(
                f"{where} {key}: got {settings[key]!r}, want {json.dumps(allowed[0])}: "
                "it is not for SDXL's latents."
            )
    try:
        config = msgspec.convert({**settings, "class_name": name}, type=SchedulerConfig)
    except msgspec.ValidationError as error:
        raise ScheduleError(f"{where}: got {error}, want settings of {name}.") from error
    asked = [key for key in map(spacing_setting, SIGMA_SPACINGS) if getattr(config, key)]
    if len(asked) > 1:
        raise ScheduleError(f"{where}: got {' and '.join(asked)}, want at most one of them.")
    return config


def read_scheduler_content(path: Path) -> dict[str, object]:
    """scheduler_config.json as it is.

    Raises:
        ScheduleError: the file is missing, or no JSON object.
    """
    try:
        # Not msgspec: diffusers writes -Infinity, which is not JSON.
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScheduleError(f"{path}: got {error}, want a diffusers scheduler config.") from error
    if not isinstance(content, dict):
        raise ScheduleError(f"{path}: got {type(content).__name__}, want a JSON object.")
    return content


def read_scheduler_config(path: Path, *, class_name: str | None = None) -> SchedulerConfig:
    """Read scheduler_config.json, for its own class or for another.

    Raises:
        ScheduleError: the file is missing, or asks for something that is not known.
    """
    return scheduler_config(read_scheduler_content(path), class_name=class_name, where=str(path))
