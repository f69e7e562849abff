"""Runs that make a part of a picture anew, beside diffusers' StableDiffusionXLInpaintPipeline.

The latents after every step, in float32 on the CPU: with an ordinary U-Net, which does not know the
mask, and with one of nine channels, which is told it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import ScheduleError, UsageError
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.sampling.callbacks import SamplingRun, StepCallback
from triptych.sampling.image_start import ImageStart
from triptych.sampling.pipeline import denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.testing import tiny_checkpoint
from triptych.types import Array, Latents

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

LIMIT = 1e-5
"""Relative L2 of the latents after each step."""

LIMIT_OVER_SCHEDULERS = 5e-5
"""DDIM is at 3.1e-5, because diffusers keeps its latents in float32 between formulas that divide by
small signals; the others are below 1e-5."""

SEED = 3
PROMPT = "a photo of a cat"
HEIGHT_PX, WIDTH_PX = 72, 104


class Case(TypedDict, total=False):
    """What diffusers' pipeline is called with, in its own words."""

    strength: float
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    denoising_end: float


def picture(*, pictures: int = 1) -> Array:
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (pictures, 3, HEIGHT_PX, WIDTH_PX)).astype(np.float32)


def mask() -> Array:
    """Soft, so that cutting it at a half matters; no edge on a latent cell's."""
    right = np.linspace(0, 1, WIDTH_PX, dtype=np.float32)
    soft = np.broadcast_to(right, (HEIGHT_PX, WIDTH_PX)).copy()
    soft[20:33, :] = 1 - soft[20:33, :]
    return soft[np.newaxis, np.newaxis]


@pytest.fixture(scope="module")
def nine_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inpaint") / "tiny"
    return tiny_checkpoint(folder, seed=2, kind="inpaint")


@pytest.fixture(scope="module")
def pipelines(
    pipeline: StableDiffusionXLPipeline, nine_channels: Path
) -> Mapping[str, StableDiffusionXLInpaintPipeline]:
    made = {
        "ordinary": StableDiffusionXLInpaintPipeline(**pipeline.components),
        "nine channels": StableDiffusionXLInpaintPipeline.from_pretrained(nine_channels),
    }
    for one in made.values():
        one.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def bundles(checkpoint_bundle: Bundle, nine_channels: Path) -> Mapping[str, Bundle]:
    return {"ordinary": checkpoint_bundle, "nine channels": open_bundle(nine_channels)}


UNETS = ("ordinary", "nine channels")


def theirs(
    pipeline: StableDiffusionXLInpaintPipeline,
    *,
    seeds: tuple[int, ...] = (SEED,),
    image: Array | None = None,
    scheduler: str = "EulerDiscreteScheduler",
    prompt: str | list[str] = PROMPT,
    **settings: object,
) -> list[Latents]:
    import diffusers

    steps: list[Latents] = []

    def keep(
        pipe: object, index: int, timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        del pipe, index, timestep
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    before = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(before.config)
    try:
        pipeline(
            prompt=prompt,
            image=torch.from_numpy(((picture() if image is None else image) + 1) / 2),
            mask_image=torch.from_numpy(mask()),
            height=HEIGHT_PX,
            width=WIDTH_PX,
            generator=generators if len(generators) > 1 else generators[0],
            output_type="latent",
            callback_on_step_end=keep,
            **settings,
        )
    finally:
        pipeline.scheduler = before
    return steps


def ours(
    bundle: Bundle,
    settings: Settings,
    *,
    runtime: str = "pytorch",
    callback: StepCallback | None = None,
    tensors: tuple[str, ...] = ("latents",),
) -> list[Latents]:
    engine = make_runtime(runtime)
    events = denoise(
        bundle,
        engine,
        prepare(bundle, engine, settings),
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=tensors,
    )
    return [event.latents.copy() for event in events]


def settings_for(case: Case, *, scheduler: str | None = None, **changes: object) -> Settings:
    settings = Settings(
        prompts=Prompts(prompt=(PROMPT,)),
        num_inference_steps=case.get("num_inference_steps", 6),
        scheduler=SchedulerChoice(name=scheduler),
        guidance_scale=case.get("guidance_scale", 7.5),
        guidance_rescale=case.get("guidance_rescale", 0.0),
        denoising_end=case.get("denoising_end"),
        seeds=(SEED,),
        start=ImageStart(image=picture(), mask=mask(), strength=case.get("strength", 0.9999)),
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def assert_same(actual: list[Latents], expected: list[Latents], *, limit: float = LIMIT) -> None:
    assert len(actual) == len(expected)
    errors = [rel_l2(got, wanted) for got, wanted in zip(actual, expected, strict=True)]
    assert all(error < limit for error in errors), errors  # NaN is not less


CASES: Mapping[str, Case] = {
    "almost all is made anew": {"num_inference_steps": 6},
    "from noise alone": {"strength": 1.0, "num_inference_steps": 6},
    "a third": {"strength": 0.34, "num_inference_steps": 6},
    "unguided": {"strength": 0.6, "guidance_scale": 1.0, "num_inference_steps": 5},
    "rescaled": {"strength": 0.6, "guidance_rescale": 0.7, "num_inference_steps": 5},
    "stopped before its end": {"strength": 1.0, "denoising_end": 0.6, "num_inference_steps": 10},
}


@pytest.mark.parametrize("unet", UNETS)
@pytest.mark.parametrize("name", CASES)
def test_every_step(
    name: str,
    unet: str,
    bundles: Mapping[str, Bundle],
    pipelines: Mapping[str, StableDiffusionXLInpaintPipeline],
) -> None:
    expected = theirs(pipelines[unet], **CASES[name])
    assert_same(ours(bundles[unet], settings_for(CASES[name])), expected)


SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("unet", UNETS)
def test_schedulers_draw_their_noise_after_the_pictures(
    scheduler: str,
    unet: str,
    bundles: Mapping[str, Bundle],
    pipelines: Mapping[str, StableDiffusionXLInpaintPipeline],
) -> None:
    case: Case = {"strength": 0.7, "num_inference_steps": 6}
    expected = theirs(pipelines[unet], scheduler=SCHEDULERS[scheduler], **case)
    actual = ours(bundles[unet], settings_for(case, scheduler=scheduler))
    assert_same(actual, expected, limit=LIMIT_OVER_SCHEDULERS)


@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
@pytest.mark.parametrize("unet", UNETS)
def test_several_pictures_each_with_its_own(
    unet: str,
    seeds: tuple[int, ...],
    bundles: Mapping[str, Bundle],
    pipelines: Mapping[str, StableDiffusionXLInpaintPipeline],
) -> None:
    prompts = ["a cat", "two lighthouses"]
    pictures = picture(pictures=2)
    expected = theirs(
        pipelines[unet],
        seeds=seeds,
        prompt=prompts,
        image=pictures,
        strength=0.6,
        num_inference_steps=5,
    )
    settings = settings_for(
        {"num_inference_steps": 5},
        prompts=Prompts(prompt=tuple(prompts)),
        seeds=seeds,
        start=ImageStart(image=pictures, mask=mask(), strength=0.6),
    )
    assert_same(ours(bundles[unet], settings), expected)


def test_latents_of_another_run_are_refined_behind_a_mask(
    bundles: Mapping[str, Bundle], pipelines: Mapping[str, StableDiffusionXLInpaintPipeline]
) -> None:
    """Two models on one run, as in diffusers' refiner example for inpainting."""
    first = theirs(pipelines["ordinary"], num_inference_steps=8, denoising_end=0.5, strength=0.9999)
    handed_over = torch.from_numpy(first[-1])
    steps: list[Latents] = []

    def keep(
        pipe: object, index: int, timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        del pipe, index, timestep
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    pipelines["ordinary"](
        prompt=PROMPT,
        image=handed_over,
        mask_image=torch.from_numpy(mask()),
        height=HEIGHT_PX,
        width=WIDTH_PX,
        num_inference_steps=8,
        denoising_start=0.5,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
        callback_on_step_end=keep,
    )
    settings = settings_for(
        {"num_inference_steps": 8},
        denoising_start=0.5,
        start=ImageStart(latents=first[-1], mask=mask()),
    )
    assert_same(ours(bundles["ordinary"], settings), steps)


def test_one_picture_for_several_seeds_is_drawn_for_each(bundles: Mapping[str, Bundle]) -> None:
    """diffusers draws its posterior from the first generator alone; here each picture of a batch
    is the one that its seed gives alone."""
    case: Case = {"strength": 0.7, "num_inference_steps": 4}
    together = ours(
        bundles["ordinary"], settings_for(case, num_images_per_prompt=2, seeds=(SEED, 9))
    )
    for row, seed in enumerate((SEED, 9)):
        alone = ours(bundles["ordinary"], settings_for(case, seeds=(seed,)))
        assert rel_l2(together[-1][row : row + 1], alone[-1]) < LIMIT


# Callbacks


@pytest.mark.parametrize("unet", UNETS)
def test_a_callback_changes_the_mask(
    unet: str,
    bundles: Mapping[str, Bundle],
    pipelines: Mapping[str, StableDiffusionXLInpaintPipeline],
) -> None:
    """The same function for both: NumPy and torch know what it does."""
    shapes: list[tuple[int, ...]] = []

    def opened(
        run: SamplingRun, index: int, timestep: float, tensors: dict[str, Array]
    ) -> dict[str, Array]:
        del run, timestep
        shapes.append(tuple(tensors["mask"].shape))
        if index == 1:
            tensors["mask"] = tensors["mask"] * 0 + 1
        return tensors

    case: Case = {"strength": 0.7, "num_inference_steps": 6}
    steps: list[Latents] = []

    def opened_and_kept(
        pipe: SamplingRun, index: int, timestep: float, tensors: dict[str, Array]
    ) -> dict[str, Array]:
        returned = opened(pipe, index, timestep, tensors)
        steps.append(np.asarray(tensors["latents"]).copy())
        return returned

    pipelines[unet](
        prompt=PROMPT,
        image=torch.from_numpy((picture() + 1) / 2),
        mask_image=torch.from_numpy(mask()),
        height=HEIGHT_PX,
        width=WIDTH_PX,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
        callback_on_step_end=opened_and_kept,
        callback_on_step_end_tensor_inputs=["latents", "mask"],
        **case,
    )
    theirs_shapes, shapes[:] = shapes.copy(), []
    actual = ours(bundles[unet], settings_for(case), callback=opened, tensors=("latents", "mask"))
    assert shapes == theirs_shapes
    assert_same(actual, steps)


# What cannot be


def test_a_mask_of_another_size(bundles: Mapping[str, Bundle]) -> None:
    start = ImageStart(image=picture(), mask=np.ones((1, 1, 64, 64), np.float32))
    with pytest.raises(UsageError, match="got 64 x 64 px, want 72 x 104"):
        ours(bundles["ordinary"], settings_for({}, start=start))


def test_a_runge_kutta_start_is_not_begun_in_its_middle(bundles: Mapping[str, Bundle]) -> None:
    case: Case = {"strength": 0.7, "num_inference_steps": 6}
    with pytest.raises(ScheduleError, match="inside the Runge-Kutta start"):
        ours(bundles["ordinary"], settings_for(case, scheduler="pndm"))


def test_masks_that_cannot_be_shared_out(bundles: Mapping[str, Bundle]) -> None:
    start = ImageStart(image=picture(), mask=np.repeat(mask(), 2, axis=0))
    with pytest.raises(UsageError, match="mask: got 2 for 1 pictures"):
        ours(bundles["ordinary"], settings_for({}, start=start))


@pytest.mark.parametrize(
    "start",
    [
        None,
        ImageStart(image=picture()),
        ImageStart(latents=np.zeros((1, 4, 9, 13), np.float32), mask=mask()),
    ],
)
def test_nine_channels_want_a_picture_and_its_mask(
    start: ImageStart | None, bundles: Mapping[str, Bundle]
) -> None:
    with pytest.raises(UsageError, match="inpainting U-Net of 9 channels without"):
        ours(bundles["nine channels"], settings_for({}, start=start))
