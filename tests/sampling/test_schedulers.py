"""Choosing a scheduler by name, and what each of them refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import ScheduleError
from triptych.sampling.samplers import TAKES, make_sampler, make_schedule
from triptych.sampling.scheduler_classes import CLASS_SETTINGS
from triptych.sampling.scheduler_config import SigmaSpacing, scheduler_config
from triptych.sampling.schedulers import SCHEDULERS, SchedulerChoice, read_sampler
from triptych.sampling.solvers.ddim import DdimSolver
from triptych.sampling.solvers.dpm_multistep import DpmMultistepSolver
from triptych.sampling.timestep_spacing import Steps

SHIPPED: dict[str, object] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(SHIPPED), encoding="utf-8")
    return path


def test_the_bundles_own_without_a_choice(config_path: Path) -> None:
    sampler = read_sampler(config_path, SchedulerChoice(), num_inference_steps=4)
    assert sampler.schedule.timesteps.tolist() == [751, 501, 251, 1]
    assert sampler.schedule.variance == "exploding"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_name(name: str, config_path: Path) -> None:
    choice = SchedulerChoice(name=name, eta=0.5)
    sampler = read_sampler(config_path, choice, num_inference_steps=4)
    assert sampler.schedule.num_inference_steps >= 4
    if isinstance(sampler.solver, DpmMultistepSolver):
        assert sampler.solver.stochastic == name.endswith("sde")
    if isinstance(sampler.solver, DdimSolver):
        assert sampler.solver.eta == 0.5


def test_a_spacing_replaces_the_configs(config_path: Path) -> None:
    config_path.write_text(json.dumps({**SHIPPED, "use_beta_sigmas": True}), encoding="utf-8")
    choice = SchedulerChoice(sigma_spacing="karras")
    karras = read_sampler(config_path, choice, num_inference_steps=9).schedule
    expected = make_schedule(
        scheduler_config({**SHIPPED, "use_karras_sigmas": True}), num_inference_steps=9
    )
    np.testing.assert_array_equal(karras.sigmas, expected.sigmas)


@pytest.mark.parametrize("name", ["ddim", "lcm", "euler-ancestral", "pndm"])
def test_a_spacing_that_a_scheduler_does_not_have(name: str, config_path: Path) -> None:
    choice = SchedulerChoice(name=name, sigma_spacing="karras")
    with pytest.raises(ScheduleError, match=r"got karras for .*Scheduler, which has none"):
        read_sampler(config_path, choice, num_inference_steps=4)


def test_unknown_name(config_path: Path) -> None:
    with pytest.raises(ScheduleError, match="got 'Euler', want one of euler, euler-ancestral"):
        read_sampler(config_path, SchedulerChoice(name="Euler"), num_inference_steps=4)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", set(CLASS_SETTINGS) - set(TAKES))
def test_schedulers_that_take_no_timesteps(class_name: str) -> None:
    config = scheduler_config({}, class_name=class_name)
    with pytest.raises(ScheduleError, match=r"timesteps: got 2 for .* only num_inference_steps"):
        make_schedule(config, timesteps=(900.0, 100.0))


@pytest.mark.parametrize("class_name", set(CLASS_SETTINGS) - {"EulerDiscreteScheduler"})
def test_schedulers_that_take_no_sigmas(class_name: str) -> None:
    config = scheduler_config({}, class_name=class_name)
    with pytest.raises(ScheduleError, match="sigmas: got 3 for"):
        make_schedule(config, sigmas=(10.0, 1.0, 0.0))


@pytest.mark.parametrize(
    "timesteps", [(100.0, 900.0), (500.0, 500.0), (1000.0, 1.0), (5.0, -1.0), (float("nan"), 1.0)]
)
@pytest.mark.parametrize("class_name", TAKES)
def test_timesteps_that_cannot_be(class_name: str, timesteps: tuple[float, ...]) -> None:
    with pytest.raises(ScheduleError, match=r"timesteps: got .* want descending ones"):
        make_schedule(scheduler_config({}, class_name=class_name), timesteps=timesteps)


@pytest.mark.parametrize(
    "sigmas", [(1.0,), (1.0, 2.0), (1.0, 1.0), (1.0, -1.0), (float("inf"), 1.0, 0.0)]
)
def test_sigmas_that_cannot_be(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ScheduleError, match=r"sigmas: got .* want at least two"):
        make_schedule(scheduler_config({}), sigmas=sigmas)


def test_timesteps_and_sigmas_at_once() -> None:
    with pytest.raises(ScheduleError, match="got timesteps and sigmas"):
        make_schedule(scheduler_config({}), timesteps=(9.0,), sigmas=(1.0, 0.0))


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("class_name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_timesteps_with_sigmas_that_choose_their_own(class_name: str, spacing: str) -> None:
    config = scheduler_config({f"use_{spacing}_sigmas": True}, class_name=class_name)
    with pytest.raises(ScheduleError, match=f"with {spacing} sigmas"):
        make_schedule(config, timesteps=(900.0, 100.0))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_0_to_1(eta: float) -> None:
    with pytest.raises(ScheduleError, match="eta: got"):
        make_sampler(scheduler_config({}, class_name="DDIMScheduler"), Steps(), eta=eta)


def test_more_steps_than_a_distilled_model_knows() -> None:
    for class_name in ("LCMScheduler", "TCDScheduler"):
        config = scheduler_config({"original_inference_steps": 8}, class_name=class_name)
        assert make_schedule(config, num_inference_steps=8).num_inference_steps == 8
        with pytest.raises(ScheduleError, match="got 9, want at most the 8"):
            make_schedule(config, num_inference_steps=9)


def test_too_few_steps_for_a_runge_kutta_start() -> None:
    config = scheduler_config({"skip_prk_steps": False}, class_name="PNDMScheduler")
    assert make_schedule(config, num_inference_steps=4).num_inference_steps == 13
    with pytest.raises(ScheduleError, match="got 3 with skip_prk_steps false"):
        make_schedule(config, num_inference_steps=3)


@pytest.mark.parametrize("class_name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_so_many_steps_that_two_are_at_one_level(class_name: str) -> None:
    config = scheduler_config({}, class_name=class_name)
    with pytest.raises(ScheduleError, match="several are at the same noise level"):
        make_schedule(config, num_inference_steps=1000)


# --- every schedule ------------------------------------------------------------------------------


@given(
    class_name=st.sampled_from(sorted(CLASS_SETTINGS)),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    offset=st.sampled_from([0, 1]),
    respaced=st.sampled_from([None, "karras", "exponential", "beta"]),
    steps=st.integers(4, 50),
)
def test_noise_never_rises(
    class_name: str, spacing: str, offset: int, respaced: SigmaSpacing | None, steps: int
) -> None:
    content = {**SHIPPED, "timestep_spacing": spacing, "steps_offset": offset}
    if respaced is not None:
        content[f"use_{respaced}_sigmas"] = True
    schedule = make_schedule(
        scheduler_config(content, class_name=class_name), num_inference_steps=steps
    )

    assert len(schedule.sigmas) == schedule.num_inference_steps + 1
    assert schedule.timesteps.dtype == schedule.sigmas.dtype == np.float32
    assert np.isfinite(schedule.sigmas).all()
    assert (np.diff(schedule.sigmas) <= 0).all()
    assert (np.diff(schedule.timesteps) <= 0).all()
    assert 0 <= schedule.timesteps[-1] <= schedule.timesteps[0] <= 999
    assert (schedule.init_noise_sigma == 1) == (schedule.variance == "preserved")
