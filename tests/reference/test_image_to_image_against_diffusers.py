"""Runs that start from a picture, or go on from another's latents, beside diffusers' pipelines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import UsageError
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.sampling.image_start import ImageStart
from triptych.sampling.micro_conditioning import MicroConditioning
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
LIMIT_OVER_SCHEDULERS = 5e-5
"""DDIM from the first step is at 2.0e-5, because diffusers keeps its latents in float32 between
formulas that divide by small signals; the others are below 1e-5."""

SEED = 3
PROMPT = "a photo of a cat"


@pytest.fixture(scope="module")
def image_pipeline(pipeline: StableDiffusionXLPipeline) -> StableDiffusionXLImg2ImgPipeline:
    made = StableDiffusionXLImg2ImgPipeline(**pipeline.components)
    made.set_progress_bar_config(disable=True)
    return made


def picture(*, pictures: int = 1, height_px: int = 72, width_px: int = 104) -> Array:
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (pictures, 3, height_px, width_px)).astype(np.float32)


def unit(picture: Array) -> torch.Tensor:
    """A picture as diffusers wants it, from 0 to 1."""
    return torch.from_numpy((picture + 1) / 2)


def ours(bundle: Bundle, settings: Settings, *, runtime: str = "pytorch") -> list[Latents]:
    engine = make_runtime(runtime)
    prepared = prepare(bundle, engine, settings)
    return [event.latents.copy() for event in denoise(bundle, engine, prepared)]


def theirs(
    pipeline: StableDiffusionXLImg2ImgPipeline | StableDiffusionXLPipeline,
    *,
    seeds: tuple[int, ...] = (SEED,),
    **settings: object,
) -> list[Latents]:
    steps: list[Latents] = []

    def keep(
        pipe: object,
        index: int,
        timestep: object,
        tensors: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        del pipe, index, timestep
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    pipeline(
        generator=generators if len(generators) > 1 else generators[0],
        output_type="latent",
        callback_on_step_end=keep,
        **settings,
    )
    return steps


def assert_same(actual: list[Latents], expected: list[Latents], *, limit: float = LIMIT) -> None:
    assert len(actual) == len(expected)
    errors = [rel_l2(got, wanted) for got, wanted in zip(actual, expected, strict=True)]
    assert all(error < limit for error in errors), errors  # NaN is not less


SCHEDULERS: Mapping[str, str] = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_a_picture_is_made_anew_in_part(
    scheduler: str,
    strength: float,
    checkpoint_bundle: Bundle,
    image_pipeline: StableDiffusionXLImg2ImgPipeline,
) -> None:
    import diffusers

    before = image_pipeline.scheduler
    kind = getattr(diffusers, SCHEDULERS[scheduler])
    image_pipeline.scheduler = kind.from_config(before.config)
    try:
        expected = theirs(
            image_pipeline,
            prompt=PROMPT,
            image=unit(picture()),
            strength=strength,
            num_inference_steps=6,
        )
    finally:
        image_pipeline.scheduler = before
    settings = Settings(
        prompts=Prompts(prompt=(PROMPT,)),
        num_inference_steps=6,
        scheduler=SchedulerChoice(name=scheduler),
        seeds=(SEED,),
        start=ImageStart(image=picture(), strength=strength),
    )
    assert_same(ours(checkpoint_bundle, settings), expected, limit=LIMIT_OVER_SCHEDULERS)


@pytest.mark.parametrize("seeds", [(3,), (3, 4)])
def test_several_pictures_each_with_its_own(
    seeds: tuple[int, ...],
    checkpoint_bundle: Bundle,
    image_pipeline: StableDiffusionXLImg2ImgPipeline,
) -> None:
    prompts = ["a cat", "two lighthouses"]
    pictures = picture(pictures=2)
    expected = theirs(
        image_pipeline,
        seeds=seeds,
        prompt=prompts,
        image=unit(pictures),
        strength=0.6,
        num_inference_steps=5,
        original_size=(512, 384),
        negative_original_size=(64, 96),
        crops_coords_top_left=(8, 16),
    )
    settings = Settings(
        prompts=Prompts(prompt=tuple(prompts)),
        num_inference_steps=5,
        seeds=seeds,
        start=ImageStart(image=pictures, strength=0.6),
        sizes=MicroConditioning(
            original_size=(512, 384), negative_original_size=(64, 96), crop=(8, 16)
        ),
    )
    assert_same(ours(checkpoint_bundle, settings), expected)


def test_one_picture_for_several(
    checkpoint_bundle: Bundle, image_pipeline: StableDiffusionXLImg2ImgPipeline
) -> None:
    expected = theirs(
        image_pipeline,
        prompt=PROMPT,
        image=unit(picture()),
        strength=0.6,
        num_inference_steps=5,
        num_images_per_prompt=2,
    )
    settings = Settings(
        prompts=Prompts(prompt=(PROMPT,)),
        num_inference_steps=5,
        num_images_per_prompt=2,
        seeds=(SEED,),
        start=ImageStart(image=picture(), strength=0.6),
    )
    assert_same(ours(checkpoint_bundle, settings), expected)


# Two models, one run


@pytest.mark.parametrize(("steps", "split"), [(10, 0.8), (7, 0.5), (4, 0.3)])
def test_a_run_is_handed_over_half_way(
    steps: int,
    split: float,
    checkpoint_bundle: Bundle,
    pipeline: StableDiffusionXLPipeline,
    image_pipeline: StableDiffusionXLImg2ImgPipeline,
) -> None:
    first = theirs(
        pipeline,
        prompt=PROMPT,
        num_inference_steps=steps,
        denoising_end=split,
        height=72,
        width=104,
    )
    second = theirs(
        image_pipeline,
        prompt=PROMPT,
        image=torch.from_numpy(first[-1]),
        num_inference_steps=steps,
        denoising_start=split,
    )
    base = Settings(
        prompts=Prompts(prompt=(PROMPT,)),
        num_inference_steps=steps,
        seeds=(SEED,),
        height_px=72,
        width_px=104,
        denoising_end=split,
    )
    ours_first = ours(checkpoint_bundle, base)
    assert_same(ours_first, first)
    handed_over = replace(
        base,
        height_px=None,
        width_px=None,
        denoising_end=None,
        denoising_start=split,
        start=ImageStart(latents=ours_first[-1]),
    )
    assert_same(ours(checkpoint_bundle, handed_over), second)
    assert len(first) + len(second) == steps


def test_the_seeds_split_of_forty_steps(checkpoint_bundle: Bundle) -> None:
    base = Settings(prompts=Prompts(prompt=(PROMPT,)), num_inference_steps=40, denoising_end=0.8)
    engine = make_runtime("pytorch")
    assert prepare(checkpoint_bundle, engine, base).part.num_steps == 32


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text encoder, five time ids, its own U-Net."""
    return tiny_checkpoint(tmp_path_factory.mktemp("refiner") / "tiny", seed=1, kind="refiner")


@pytest.mark.parametrize("settings", [{"strength": 0.5}, {"denoising_start": 0.6}])
def test_a_refiner(settings: dict[str, float], refiner: Path) -> None:
    theirs_refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner)
    theirs_refiner.set_progress_bar_config(disable=True)
    random = np.random.default_rng(5)
    latents = random.standard_normal((1, 4, 9, 13)).astype(np.float32)
    expected = theirs(
        theirs_refiner,
        prompt=PROMPT,
        prompt_2="what no encoder hears",
        negative_prompt="fog",
        image=torch.from_numpy(latents),
        num_inference_steps=6,
        aesthetic_score=7.0,
        negative_aesthetic_score=1.5,
        **settings,  # type: ignore[arg-type]
    )
    mine = Settings(
        prompts=Prompts(
            prompt=(PROMPT,), prompt_2=("what no encoder hears",), negative_prompt=("fog",)
        ),
        num_inference_steps=6,
        seeds=(SEED,),
        start=ImageStart(latents=latents, strength=settings.get("strength", 0.3)),
        denoising_start=settings.get("denoising_start"),
        sizes=MicroConditioning(aesthetic_score=7.0, negative_aesthetic_score=1.5),
    )
    assert_same(ours(open_bundle(refiner), mine), expected)


def test_a_refiner_needs_something_to_refine(refiner: Path) -> None:
    with pytest.raises(UsageError, match="nothing to refine"):
        ours(open_bundle(refiner), Settings(prompts=Prompts(prompt=(PROMPT,))))


# What cannot be


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_inference_steps": 1, "start": ImageStart(image=picture(), strength=0.5)}, "none"),
        ({"start": ImageStart(image=picture(), strength=1.5)}, "want 0 to 1"),
        ({"start": ImageStart(image=picture(pictures=2))}, "got 2 for 1 pictures"),
        ({"start": ImageStart(image=picture(height_px=70))}, "divisible by 8"),
        ({"denoising_start": 0.5}, "without latents"),
        ({"denoising_end": 1.5}, "between 0 and 1"),
        (
            {
                "start": ImageStart(image=picture()),
                "denoising_start": 0.8,
                "denoising_end": 0.5,
            },
            "want it to be less",
        ),
        ({"num_inference_steps": 2, "denoising_end": 0.01}, "leave no step"),
        ({"start": ImageStart(image=picture()), "height_px": 64}, "its own size"),
    ],
)
def test_settings_that_leave_nothing_to_do(
    changes: dict[str, object], told: str, checkpoint_bundle: Bundle
) -> None:
    settings = replace(Settings(prompts=Prompts(prompt=(PROMPT,))), **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=told):
        ours(checkpoint_bundle, settings)


def test_a_start_is_one_thing() -> None:
    with pytest.raises(UsageError, match="want one of them"):
        ImageStart()
    with pytest.raises(UsageError, match="want one of them"):
        ImageStart(image=picture(), latents=picture())
