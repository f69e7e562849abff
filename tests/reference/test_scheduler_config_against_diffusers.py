"""What diffusers' schedulers are told, save and hand on, beside what triptych reads."""

import inspect
from dataclasses import asdict, fields
from pathlib import Path

import diffusers
import pytest

from triptych.errors import ScheduleError
from triptych.sampling.samplers import make_schedule
from triptych.sampling.scheduler_classes import CLASS_SETTINGS
from triptych.sampling.scheduler_config import (
    SchedulerConfig,
    class_settings,
    read_scheduler_config,
)

# diffusers' Heun and LMS set their timesteps when they are made, by NumPy's older protocol.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*algorithm_types dpmsolver:FutureWarning"),
]

FIELDS = {field.name for field in fields(SchedulerConfig)} - {"class_name"}

OTHERS: dict[str, dict[str, object]] = {
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing", "sigma_min": 0.1},
    "EulerAncestralDiscreteScheduler": {"steps_offset": 1, "rescale_betas_zero_snr": True},
    "HeunDiscreteScheduler": {"use_karras_sigmas": True, "clip_sample": True},
    "LMSDiscreteScheduler": {"use_beta_sigmas": True, "prediction_type": "v_prediction"},
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "DDPMScheduler": {"variance_type": "fixed_large", "clip_sample_range": 2.0},
    "PNDMScheduler": {"skip_prk_steps": True, "trained_betas": [0.1, 0.2, 0.3]},
    "DPMSolverMultistepScheduler": {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
    "UniPCMultistepScheduler": {"disable_corrector": [0, 2], "solver_type": "bh1"},
    "LCMScheduler": {"original_inference_steps": 100, "timestep_scaling": 5.0},
    "TCDScheduler": {"original_inference_steps": 25, "num_train_timesteps": 500},
}
"""Settings that are not the class's defaults."""


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("class_name", CLASS_SETTINGS)
def test_settings_and_defaults_are_the_class_own(class_name: str) -> None:
    signature = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    theirs = {name: one.default for name, one in signature.items() if name != "self"}
    ours = class_settings(class_name)
    assert {name: plain(value) for name, value in ours.items()} == {
        name: plain(value) for name, value in theirs.items()
    }


@pytest.mark.parametrize("settings", ["defaults", "others"])
@pytest.mark.parametrize("class_name", CLASS_SETTINGS)
def test_what_diffusers_saves_is_read_as_it_was(
    class_name: str, settings: str, tmp_path: Path
) -> None:
    scheduler = getattr(diffusers, class_name)(
        **(OTHERS[class_name] if settings == "others" else {})
    )
    scheduler.save_pretrained(tmp_path)
    ours = asdict(read_scheduler_config(tmp_path / "scheduler_config.json"))
    assert ours["class_name"] == class_name
    shared = FIELDS & set(scheduler.config)
    assert shared == FIELDS & set(class_settings(class_name))
    assert {name: plain(ours[name]) for name in shared} == {
        name: plain(scheduler.config[name]) for name in shared
    }


@pytest.mark.parametrize("origin", CLASS_SETTINGS)
@pytest.mark.parametrize("class_name", CLASS_SETTINGS)
def test_one_scheduler_from_the_config_of_another(
    class_name: str, origin: str, tmp_path: Path
) -> None:
    getattr(diffusers, origin)(**OTHERS[origin]).save_pretrained(tmp_path)
    theirs = getattr(diffusers, class_name).from_pretrained(tmp_path).config
    ours = asdict(read_scheduler_config(tmp_path / "scheduler_config.json", class_name=class_name))
    names = FIELDS & set(class_settings(class_name))
    # UniPC and DPM-Solver register the names of each other's solver types as their own defaults;
    # triptych reads them as they stand and takes them for that when it makes the solver.
    names -= {"solver_type"}
    assert {name: plain(ours[name]) for name in names} == {
        name: plain(theirs[name]) for name in names
    }


@pytest.mark.parametrize(
    ("class_name", "config"),
    [
        ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
        ("EulerDiscreteScheduler", {"prediction_type": "original_sample"}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("DDIMScheduler", {"thresholding": True}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
        ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
        ("UniPCMultistepScheduler", {"lower_order_final": False}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
    ],
)
def test_what_diffusers_can_and_triptych_cannot_is_refused(
    class_name: str, config: dict[str, object], tmp_path: Path
) -> None:
    getattr(diffusers, class_name)(**config).save_pretrained(tmp_path)
    with pytest.raises(ScheduleError, match=next(iter(config))):
        make_schedule(
            read_scheduler_config(tmp_path / "scheduler_config.json"), num_inference_steps=4
        )
