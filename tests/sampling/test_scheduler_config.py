"""Reading scheduler_config.json, for its own class and for others."""

import json
from pathlib import Path

import pytest

from triptych.errors import ScheduleError
from triptych.sampling.samplers import make_schedule
from triptych.sampling.scheduler_classes import CLASS_SETTINGS
from triptych.sampling.scheduler_config import (
    SchedulerConfig,
    class_settings,
    read_scheduler_config,
    scheduler_config,
)

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def write(folder: Path, **content: object) -> Path:
    path = folder / "scheduler_config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_config_of_sdxl_is_read(checkpoint: Path) -> None:
    read = read_scheduler_config(checkpoint / "scheduler" / "scheduler_config.json")
    assert read.class_name == "EulerDiscreteScheduler"
    assert (read.beta_schedule, read.beta_start, read.beta_end) == tuple(SDXL.values())
    assert (read.timestep_spacing, read.steps_offset) == ("leading", 1)
    assert read.prediction_type == "epsilon"
    assert read.num_train_timesteps == 1000


def test_settings_left_out_are_diffusers_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, _class_name="DDIMScheduler", clip_sample=False, use_beta_sigmas=None)
    read = read_scheduler_config(path)
    assert read == SchedulerConfig(class_name="DDIMScheduler", timestep_spacing="leading")
    assert make_schedule(read, num_inference_steps=2).num_inference_steps == 2


@pytest.mark.parametrize(
    "content",
    [{"prediction_type": "sample"}, {"timestep_spacing": "even"}, {"beta_start": "small"}],
)
def test_unknown_values_are_named_with_the_file(tmp_path: Path, content: dict[str, object]) -> None:
    path = write(tmp_path, **content)
    with pytest.raises(ScheduleError, match=rf"scheduler_config.json.*{next(iter(content))}"):
        read_scheduler_config(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "nothing"])
def test_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScheduleError, match=r"scheduler_config\.json"):
        read_scheduler_config(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"scheduler_config\.json"):
        read_scheduler_config(tmp_path / "scheduler_config.json")


def test_null_is_no(tmp_path: Path) -> None:
    read = read_scheduler_config(write(tmp_path, use_beta_sigmas=None, use_karras_sigmas=None))
    assert read.sigma_spacing is None
    make_schedule(read, num_inference_steps=2)


# --- other classes, as diffusers' from_config ----------------------------------------------------


SHIPPED = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""scheduler_config.json of stabilityai/stable-diffusion-xl-base-1.0: it keeps what other classes
need, though its own does not read it."""


@pytest.mark.parametrize("class_name", CLASS_SETTINGS)
def test_every_class_reads_what_sdxl_ships(class_name: str, tmp_path: Path) -> None:
    read = read_scheduler_config(write(tmp_path, **SHIPPED), class_name=class_name)
    assert read.class_name == class_name
    assert (read.beta_schedule, read.beta_start, read.beta_end) == tuple(SDXL.values())
    assert (read.timestep_spacing, read.steps_offset) == ("leading", 1)
    assert not read.clip_sample
    more_often = {"PNDMScheduler": 5, "HeunDiscreteScheduler": 7}
    schedule = make_schedule(read, num_inference_steps=4)
    assert schedule.num_inference_steps == more_often.get(class_name, 4)


def test_what_a_class_does_not_have_is_passed_over() -> None:
    content = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "solver_p": 1}
    assert scheduler_config(content).sigma_spacing == "karras"
    assert scheduler_config(content, class_name="DDIMScheduler").sigma_spacing is None
    assert scheduler_config({"skip_prk_steps": True, "nonsense": 3}) == SchedulerConfig()


def test_what_a_config_does_not_say_takes_the_class_default() -> None:
    assert scheduler_config({}, class_name="DDIMScheduler").clip_sample
    assert not scheduler_config({}, class_name="LCMScheduler").clip_sample
    assert scheduler_config({}, class_name="LCMScheduler").beta_schedule == "scaled_linear"
    assert scheduler_config({}, class_name="UniPCMultistepScheduler").solver_type == "bh2"
    assert class_settings("PNDMScheduler")["set_alpha_to_one"] is False


def test_minus_infinity_as_diffusers_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(
        '{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity}',
        encoding="utf-8",
    )
    assert read_scheduler_config(path).lambda_min_clipped == -float("inf")


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "", "euler"])
def test_unknown_class_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ScheduleError, match=f"got '{name}', want one of DDIMScheduler"):
        scheduler_config({"_class_name": name})


@pytest.mark.parametrize(
    ("class_name", "setting", "value"),
    [
        ("DDIMScheduler", "thresholding", True),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", True),
        ("DPMSolverMultistepScheduler", "use_dynamic_shifting", True),
        ("UniPCMultistepScheduler", "solver_p", "DDIMScheduler"),
        ("UniPCMultistepScheduler", "shift_terminal", 0.1),
        ("UniPCMultistepScheduler", "solver_order", 4),
        ("EulerDiscreteScheduler", "prediction_type", "sample"),
        ("DDIMScheduler", "prediction_type", "sample"),
        ("EulerDiscreteScheduler", "interpolation_type", "cubic"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "one"),
        ("HeunDiscreteScheduler", "beta_schedule", "exp"),
        ("DDPMScheduler", "beta_schedule", "sigmoid"),
    ],
)
def test_values_that_are_not_supported_are_named(
    class_name: str, setting: str, value: object
) -> None:
    with pytest.raises(ScheduleError, match=setting):
        scheduler_config({"_class_name": class_name, setting: value})


def test_two_spacings_are_one_too_many() -> None:
    with pytest.raises(ScheduleError, match="use_karras_sigmas and use_beta_sigmas"):
        scheduler_config({"use_karras_sigmas": True, "use_beta_sigmas": True})


def test_thresholding_of_tcd_counts_for_nothing_as_in_diffusers() -> None:
    scheduler_config({"_class_name": "TCDScheduler", "thresholding": True})
