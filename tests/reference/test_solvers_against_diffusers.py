"""Every solver beside diffusers' class of its name: whole runs on random answers, step by step.

Neither side sees the other: both start from the noise of the same seed, are given the same random
U-Net answers, and draw the noise of their steps on their own.
"""

import inspect
from collections.abc import Mapping
from typing import TypeAlias

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from triptych.parity.metrics import rel_l2
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.samplers import TAKES, make_sampler
from triptych.sampling.schedule import scale_model_input
from triptych.sampling.scheduler_config import scheduler_config
from triptych.sampling.timestep_spacing import Steps
from triptych.types import Array

# diffusers' set_timesteps gives a torch tensor to numpy.array, whose protocol torch follows in its
# older form.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

REL_L2 = 1e-5
"""Limit of the latents, the U-Net's sample and the estimate of x0 after every step. Measured with
SDXL's betas and any spacing: 3e-7 of Euler, up to 1.4e-6 of the others, 4e-6 of UniPC; 6e-6 of
DPM-Solver++ over every setting."""

ROUNDING = 2**-23
"""Share of the latents before a step that diffusers' float32 may lose in it. More than the limit
only where a step goes from a sigma of thousands, of zero SNR or cosine betas, to one of a few."""

SIGMA_RTOL, SIGMA_ATOL = 5e-6, 1e-7
"""Of sigmas. The training's own have the same bits; between them, and where torch takes roots by
MKL's vector code, the last of them differs."""

Config: TypeAlias = dict[str, object]

SDXL: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLASSES = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
RESPACED = [
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
WITH_ZERO_SNR = [
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
SHAPE = (2, 4, 5, 3)


def assert_same_run(
    class_name: str,
    config: Mapping[str, object],
    steps: Steps,
    *,
    eta: float = 0.0,
    seeds: tuple[int, ...] = (3,),
    answers: int = 0,
    exact_weights: bool = False,
) -> None:
    scheduler = getattr(diffusers, class_name)(**config)
    if steps.timesteps or steps.sigmas:
        given = "timesteps" if steps.timesteps else "sigmas"
        scheduler.set_timesteps(**{given: list(getattr(steps, given))})
    else:
        scheduler.set_timesteps(steps.num_inference_steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # as the pipeline does
    sampler = make_sampler(scheduler_config({**config, "_class_name": class_name}), steps, eta=eta)
    schedule, solver = sampler.schedule, sampler.solver
    # Fractional ones, of sigmas that are spaced on their own, come from float32 logarithms.
    fractions = 2e-4 if (schedule.timesteps % 1).any() else 0
    np.testing.assert_allclose(
        schedule.timesteps, scheduler.timesteps.numpy(), rtol=0, atol=fractions
    )
    if hasattr(scheduler, "sigmas"):
        # With log_linear interpolation diffusers appends one more sigma, which no step reaches.
        reached = scheduler.sigmas[: len(schedule.sigmas)].numpy()
        np.testing.assert_allclose(schedule.sigmas, reached, rtol=SIGMA_RTOL, atol=SIGMA_ATOL)
    assert schedule.init_noise_sigma == pytest.approx(float(scheduler.init_noise_sigma), rel=2e-6)

    if exact_weights:
        scheduler.sigmas = scheduler.sigmas.double()

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    extra: dict[str, object] = {}
    taken = inspect.signature(scheduler.step).parameters
    if "generator" in taken:
        extra["generator"] = generators if len(generators) > 1 else generators[0]
    if "eta" in taken:
        extra["eta"] = eta
    noise, stream = draw_noise(NoiseStream(seeds=seeds), SHAPE)
    latents = noise * np.float32(schedule.init_noise_sigma)
    theirs = randn_tensor(SHAPE, generator=generators) * scheduler.init_noise_sigma
    state = solver.init(schedule, stream)
    random = np.random.default_rng(answers)
    limit = REL_L2
    for index, timestep in enumerate(scheduler.timesteps):
        where = f"{class_name} step {index} of {schedule.num_inference_steps}: "
        sample = scheduler.scale_model_input(theirs, timestep).numpy()
        ours = scale_model_input(latents, schedule, index)
        assert_close(ours, sample, where + "sample", limit=limit)
        answer = random.standard_normal(SHAPE).astype(np.float32)
        lost = ROUNDING * float(np.linalg.norm(latents))
        step = solver.step(latents, answer, schedule, index, state)
        latents, state = step.latents, step.state
        expected = scheduler.step(torch.from_numpy(answer), timestep, theirs, **extra)
        theirs = expected.prev_sample
        limit = max(limit, REL_L2 + lost / float(np.linalg.norm(latents)))
        assert_close(latents, theirs.numpy(), where + "latents", limit=limit)
        estimate = getattr(expected, "pred_original_sample", getattr(expected, "denoised", None))
        if estimate is not None:
            denoised = step.denoised.astype(np.float32)
            assert_close(denoised, estimate.numpy(), where + "estimate of x0", limit=limit)


def assert_close(actual: Array, expected: Array, where: str, *, limit: float) -> None:
    assert actual.dtype == expected.dtype == np.float32, where
    error = rel_l2(actual, expected)
    assert error <= limit, f"{where}: relative L2 {error:.1e} is over {limit:.1e}"


def without_clipping(class_name: str, config: Mapping[str, object]) -> Config:
    """Random answers are far from any picture: clipped, nothing would be left of them."""
    clips = class_name in ("DDIMScheduler", "DDPMScheduler")
    return {**config, "clip_sample": False} if clips else dict(config)


@pytest.mark.parametrize("num_inference_steps", [1, 4, 20, 50])
@pytest.mark.parametrize("timestep_spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_sdxl(
    class_name: str, prediction_type: str, timestep_spacing: str, num_inference_steps: int
) -> None:
    config = without_clipping(class_name, SDXL) | {
        "prediction_type": prediction_type,
        "timestep_spacing": timestep_spacing,
        "steps_offset": 1,
    }
    if class_name == "PNDMScheduler":
        config["skip_prk_steps"] = True
    seeds = (3,) if num_inference_steps != 20 else (3, 4)  # one generator, and one a picture
    assert_same_run(class_name, config, Steps(num_inference_steps=num_inference_steps), seeds=seeds)


@pytest.mark.parametrize("num_inference_steps", [4, 20, 50])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("class_name", RESPACED)
def test_respaced_sigmas(class_name: str, spacing: str, num_inference_steps: int) -> None:
    config = {**SDXL, f"use_{spacing}_sigmas": True, "timestep_spacing": "leading"}
    steps = Steps(num_inference_steps=num_inference_steps)
    # Beta sigmas crowd together at both ends, where float32 logarithms leave few digits of their
    # distances: diffusers' UniPC is up to 3e-5 away from itself with the weights in float64.
    exact_weights = (class_name, spacing) == ("UniPCMultistepScheduler", "beta")
    assert_same_run(class_name, config, steps, exact_weights=exact_weights)


@pytest.mark.parametrize("num_inference_steps", [4, 20, 50])
@pytest.mark.parametrize("timestep_spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("class_name", WITH_ZERO_SNR)
def test_betas_rescaled_to_zero_snr(
    class_name: str, timestep_spacing: str, num_inference_steps: int
) -> None:
    config = without_clipping(class_name, SDXL) | {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": timestep_spacing,
    }
    assert_same_run(class_name, config, Steps(num_inference_steps=num_inference_steps))


@pytest.mark.parametrize("num_inference_steps", [1, 4, 20, 50])
@pytest.mark.parametrize("eta", [0.2, 0.3, 1.0])
@pytest.mark.parametrize("class_name", ["DDIMScheduler", "TCDScheduler"])
def test_eta(class_name: str, eta: float, num_inference_steps: int) -> None:
    config = without_clipping(class_name, SDXL)
    steps = Steps(num_inference_steps=num_inference_steps)
    assert_same_run(class_name, config, steps, eta=eta)
    assert_same_run(class_name, config, steps, eta=eta, seeds=(3, 2**40))


@pytest.mark.parametrize("class_name", CLASSES)
def test_an_empty_config_means_the_class_defaults(class_name: str) -> None:
    for num_inference_steps in (4, 20, 50):
        assert_same_run(class_name, {}, Steps(num_inference_steps=num_inference_steps))


@pytest.mark.parametrize(
    "class_name",
    ["DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "LCMScheduler", "TCDScheduler"],
)
def test_clipping(class_name: str) -> None:
    config = {**SDXL, "clip_sample": True, "clip_sample_range": 2.5}
    assert_same_run(class_name, config, Steps(num_inference_steps=20), eta=0.5)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("timestep_spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("num_inference_steps", [6, 7, 13, 61, 100])
@pytest.mark.parametrize("class_name", ["DDIMScheduler", "PNDMScheduler"])
def test_strides_that_do_not_divide_the_training_schedule(
    class_name: str, num_inference_steps: int, timestep_spacing: str, *, set_alpha_to_one: bool
) -> None:
    if (num_inference_steps, timestep_spacing) == (61, "trailing"):
        pytest.skip("diffusers takes one step more, at timestep -1; triptych does not")
    config = without_clipping(class_name, SDXL) | {
        "timestep_spacing": timestep_spacing,
        "set_alpha_to_one": set_alpha_to_one,
    }
    assert_same_run(class_name, config, Steps(num_inference_steps=num_inference_steps))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_inference_steps", [4, 5, 20, 50])
def test_pndm_with_its_runge_kutta_start(num_inference_steps: int, prediction_type: str) -> None:
    config = {**SDXL, "skip_prk_steps": False, "prediction_type": prediction_type}
    assert_same_run("PNDMScheduler", config, Steps(num_inference_steps=num_inference_steps))


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_variances(variance_type: str) -> None:
    config = {**SDXL, "variance_type": variance_type, "clip_sample": False, "steps_offset": 1}
    assert_same_run("DDPMScheduler", config, Steps(num_inference_steps=20))


dpm_configs = st.fixed_dictionaries(
    {
        "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]),
        "solver_order": st.sampled_from([1, 2, 3]),
        "solver_type": st.sampled_from(["midpoint", "heun", "bh1"]),
        "lower_order_final": st.booleans(),
        "euler_at_final": st.booleans(),
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
        "use_lu_lambdas": st.booleans(),
        "lambda_min_clipped": st.sampled_from([-float("inf"), -2.0]),
    }
)


@given(config=dpm_configs, num_inference_steps=st.integers(1, 50), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_any_dpm_solver(config: Config, num_inference_steps: int, seed: int) -> None:
    if config["use_lu_lambdas"] and config["final_sigmas_type"] == "sigma_min":
        config["final_sigmas_type"] = "zero"  # a last step of no length: 0 / 0 in diffusers
    # Where many steps share a short range, diffusers' float32 logarithms leave it up to 1.3e-5 away
    # from itself with the weights in float64. The tests above hold to it as it is.
    assert_same_run(
        "DPMSolverMultistepScheduler",
        {**SDXL, **config},
        Steps(num_inference_steps=num_inference_steps),
        seeds=(seed,),
        answers=seed,
        exact_weights=True,
    )


@pytest.mark.parametrize("num_inference_steps", [3, 14, 15])
@pytest.mark.parametrize("solver_order", [2, 3])
@pytest.mark.parametrize("ends", ["lower_order_final", "euler_at_final", "neither"])
def test_dpm_solver_at_the_end_of_runs_short_and_long(
    ends: str, solver_order: int, num_inference_steps: int
) -> None:
    config = SDXL | {
        "solver_order": solver_order,
        "lower_order_final": ends == "lower_order_final",
        "euler_at_final": ends == "euler_at_final",
        "final_sigmas_type": "sigma_min",
    }
    steps = Steps(num_inference_steps=num_inference_steps)
    assert_same_run("DPMSolverMultistepScheduler", config, steps)


unipc_configs = st.fixed_dictionaries(
    {
        "solver_order": st.sampled_from([1, 2, 3]),
        "solver_type": st.sampled_from(["bh2", "heun"]),
        "disable_corrector": st.sampled_from([[], [0], [1, 2, 5]]),
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
    }
)


@given(
    config=unipc_configs,
    num_inference_steps=st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_any_unipc(config: Config, num_inference_steps: int, seed: int) -> None:
    # diffusers takes differences of float32 logarithms and solves for the weights in float32: at
    # order 3 it is up to 2e-5 away from itself with the weights in float64.
    assert_same_run(
        "UniPCMultistepScheduler",
        {**SDXL, **config},
        Steps(num_inference_steps=num_inference_steps),
        answers=seed,
        exact_weights=True,
    )


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("solver_order", [1, 2, 3])
def test_unipc_to_the_least_noise(
    solver_order: int, solver_type: str, *, lower_order_final: bool, predict_x0: bool
) -> None:
    config = SDXL | {
        "final_sigmas_type": "sigma_min",  # to none at all, diffusers' bh1 is 0 times infinity
        "solver_order": solver_order,
        "solver_type": solver_type,
        "lower_order_final": lower_order_final,
        "predict_x0": predict_x0,
    }
    for num_inference_steps in (4, 20):
        steps = Steps(num_inference_steps=num_inference_steps)
        assert_same_run("UniPCMultistepScheduler", config, steps)


euler_configs = st.fixed_dictionaries(
    {
        "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
        "steps_offset": st.sampled_from([0, 1]),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
        "interpolation_type": st.sampled_from(["linear", "log_linear"]),
        "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
        "timestep_type": st.sampled_from(["discrete", "continuous"]),
        "use_karras_sigmas": st.booleans(),
    }
)


@given(
    config=euler_configs,
    ends=st.sampled_from([{}, {"sigma_min": 0.05, "sigma_max": 10.0}]),
    num_inference_steps=st.integers(1, 60),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_any_euler(config: Config, ends: Config, num_inference_steps: int, seed: int) -> None:
    # There diffusers tells the U-Net of the sigma that it appended too, and takes one step more.
    assume((config["interpolation_type"], config["timestep_type"]) != ("log_linear", "continuous"))
    steps = Steps(num_inference_steps=num_inference_steps)
    assert_same_run("EulerDiscreteScheduler", {**SDXL, **config, **ends}, steps, answers=seed)


TIMESTEPS = (999.0, 850.0, 736.0, 645.0, 545.0, 455.0, 343.0, 233.0, 124.0, 24.0)
SIGMAS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113, 0.0)


@pytest.mark.parametrize(
    "class_name",
    [
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "LCMScheduler",
        "TCDScheduler",
    ],
)
def test_given_timesteps(class_name: str) -> None:
    config = without_clipping(class_name, SDXL)
    assert_same_run(class_name, config, Steps(timesteps=TIMESTEPS), eta=0.3)
    assert_same_run(class_name, config, Steps(timesteps=TIMESTEPS[3:6]), eta=0.3)


def test_given_sigmas() -> None:
    # diffusers' "align your steps" for SDXL.
    for spacing in ("leading", "trailing"):
        config = {**SDXL, "timestep_spacing": spacing}
        assert_same_run("EulerDiscreteScheduler", config, Steps(sigmas=SIGMAS))
    assert_same_run("EulerDiscreteScheduler", SDXL, Steps(sigmas=SIGMAS[2:5]))


@pytest.mark.parametrize("class_name", CLASSES)
def test_who_takes_what(class_name: str) -> None:
    taken = inspect.signature(getattr(diffusers, class_name).set_timesteps).parameters
    takes = TAKES.get(class_name, ())
    assert ("timesteps" in taken) == ("timesteps" in takes)
    # UniPC takes sigmas for flow models alone.
    assert ("sigmas" in taken and class_name != "UniPCMultistepScheduler") == ("sigmas" in takes)
