"""Every scheduler in whole runs beside diffusers' pipeline: the latents a callback sees.

The same checkpoint, prompt and seed; the scheduler is swapped on both sides as users do, by
`from_config` there and by name here.
"""

from collections.abc import Mapping

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from triptych.bundle.bundle import Bundle
from triptych.errors import ScheduleError
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.sampling.pipeline import denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SCHEDULERS, SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.types import Latents
from triptych.workflows.diffusers_schedulers import diffusers_scheduler_names, read_any_sampler

pytestmark = [
    # diffusers' set_timesteps gives a torch tensor to numpy.array, whose protocol torch follows in
    # its older form.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

LIMIT = 1e-4
"""Relative L2 after each of six steps, with what a random U-Net makes of rounding. Measured: 2.2e-5
of DDIM, which the tiny checkpoint's config lets clip its estimates, 6e-6 of the others."""

OTHERS = [
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
]
"""Of diffusers' classes, those that triptych does not have and SDXL can be run with."""


def ours(bundle: Bundle, choice: SchedulerChoice, seeds: tuple[int, ...]) -> list[Latents]:
    runtime = make_runtime("pytorch")
    settings = Settings(
        prompts=Prompts(prompt=("a photo of a cat",)),
        num_inference_steps=6,
        num_images_per_prompt=2,
        height_px=64,
        width_px=72,
        seeds=seeds,
        scheduler=choice,
    )
    prepared = prepare(bundle, runtime, settings, make_sampler=read_any_sampler)
    return [event.latents.copy() for event in denoise(bundle, runtime, prepared)]


def theirs(
    pipeline: StableDiffusionXLPipeline,
    class_name: str,
    seeds: tuple[int, ...],
    settings: Mapping[str, object] | None = None,
    *,
    eta: float = 0.0,
) -> list[Latents]:
    """diffusers' latents after every evaluation."""
    steps: list[Latents] = []

    def keep(
        pipe: object, index: int, timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        del pipe, index, timestep
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    before = pipeline.scheduler
    try:
        made = getattr(diffusers, class_name)
        pipeline.scheduler = made.from_config(before.config, **(settings or {}))
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        pipeline(
            prompt="a photo of a cat",
            num_inference_steps=6,
            num_images_per_prompt=2,
            height=64,
            width=72,
            eta=eta,
            generator=generators if len(generators) > 1 else generators[0],
            output_type="latent",
            callback_on_step_end=keep,
        )
    finally:
        pipeline.scheduler = before
    return steps


def assert_same_latents(actual: list[Latents], expected: list[Latents]) -> None:
    assert len(actual) == len(expected)
    errors = [rel_l2(a, e) for a, e in zip(actual, expected, strict=True)]
    assert np.isfinite(errors).all()
    assert all(error <= LIMIT for error in errors), errors  # NaN is not less


@pytest.mark.parametrize("seeds", [(5,), (5, 6)], ids=["one seed", "one a picture"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_by_name(
    name: str,
    seeds: tuple[int, ...],
    checkpoint_bundle: Bundle,
    pipeline: StableDiffusionXLPipeline,
) -> None:
    kind = SCHEDULERS[name]
    settings: dict[str, object] = {}
    if kind.algorithm_type is not None:
        settings["algorithm_type"] = kind.algorithm_type
    eta = 0.4 if name in ("ddim", "tcd") else 0.0
    expected = theirs(pipeline, kind.class_name, seeds, settings, eta=eta)
    actual = ours(checkpoint_bundle, SchedulerChoice(name=name, eta=eta), seeds)
    assert_same_latents(actual, expected)


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "dpmpp-2m", "dpmpp-2m-sde", "unipc"])
def test_karras_sigmas_by_name(
    name: str, checkpoint_bundle: Bundle, pipeline: StableDiffusionXLPipeline
) -> None:
    kind = SCHEDULERS[name]
    settings: dict[str, object] = {"use_karras_sigmas": True}
    if kind.algorithm_type is not None:
        settings["algorithm_type"] = kind.algorithm_type
    expected = theirs(pipeline, kind.class_name, (5,), settings)
    choice = SchedulerChoice(name=name, sigma_spacing="karras")
    assert_same_latents(ours(checkpoint_bundle, choice, (5,)), expected)


@pytest.mark.parametrize("seeds", [(5,), (5, 6)], ids=["one seed", "one a picture"])
@pytest.mark.parametrize("class_name", OTHERS)
def test_diffusers_own(
    class_name: str,
    seeds: tuple[int, ...],
    checkpoint_bundle: Bundle,
    pipeline: StableDiffusionXLPipeline,
) -> None:
    expected = theirs(pipeline, class_name, seeds)
    actual = ours(checkpoint_bundle, SchedulerChoice(name=f"diffusers:{class_name}"), seeds)
    assert_same_latents(actual, expected)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_triptychs_beside_diffusers_own_in_the_same_loop(
    name: str, checkpoint_bundle: Bundle
) -> None:
    kind = SCHEDULERS[name]
    if kind.algorithm_type == "sde-dpmsolver++":
        pytest.skip("the name of the class alone means the ODE")
    native = ours(checkpoint_bundle, SchedulerChoice(name=name, eta=0.4), (5,))
    choice = SchedulerChoice(name=f"diffusers:{kind.class_name}", eta=0.4)
    assert_same_latents(native, ours(checkpoint_bundle, choice, (5,)))


def test_every_name_that_can_be_tried_runs_or_is_refused(checkpoint_bundle: Bundle) -> None:
    ran = set()
    for name in diffusers_scheduler_names():
        try:
            events = ours(checkpoint_bundle, SchedulerChoice(name=f"diffusers:{name}"), (5,))
        except ScheduleError:
            continue
        assert np.isfinite(events[-1]).all(), name
        ran.add(name)
    assert ran >= {*OTHERS, *(kind.class_name for kind in SCHEDULERS.values())}


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "DDIMInverseScheduler", "NoScheduler", ""]
)
def test_those_that_cannot_be_are_refused(name: str, checkpoint_bundle: Bundle) -> None:
    with pytest.raises(ScheduleError, match=f"got diffusers:{name}"):
        ours(checkpoint_bundle, SchedulerChoice(name=f"diffusers:{name}"), (5,))
