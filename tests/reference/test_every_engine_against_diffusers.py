"""SDXL's pipelines and diffusers' callbacks on every engine, beside diffusers' own runs.

One checkpoint, a second U-Net for inpainting and a third for refining; what else they need is the
first one's, on both sides. The latents of every step, and the finished pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.callbacks import SDXLCFGCutoffCallback

from triptych.bundle.bundle import Artifact, Bundle, make_artifact, open_bundle
from triptych.bundle.layouts import artifact_paths
from triptych.exporters.base import CoreMlSettings, ExportSettings
from triptych.models.feeds import smooth_picture
from triptych.models.sdxl import read_sdxl_config
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime
from triptych.sampling.callbacks import SamplingRun, StepCallback
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.image_start import ImageStart
from triptych.sampling.loop import StepEvent
from triptych.sampling.observers import observe
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.preview import preview_pixels
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.testing import tiny_checkpoint
from triptych.types import Array, FormatName, ImagePixels, Latents
from triptych.workflows.export_process import ExportJob, export_component
from triptych.workflows.torch_callback import with_torch_tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

FORMATS: Mapping[str, FormatName] = {
    "pytorch": "diffusers",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "coreml-reference": "coreml",
}

LIMIT = 2e-5
"""Relative L2 of the latents after each step, for exported networks too."""

LEVELS = 1
"""By how many of 256 levels a finished pixel may differ: a value near a half rounds either way."""

SIZE_PX = 128
SEED = 3
PROMPT = "a photo of a cat"
KINDS = ("base", "inpaint", "refiner")


@dataclass(frozen=True, kw_only=True)
class Engine:
    runtime: Runtime
    bundles: Mapping[str, Bundle]


@pytest.fixture(scope="module")
def checkpoints(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {
        "base": checkpoint,
        "inpaint": tiny_checkpoint(folder / "inpaint", seed=2, kind="inpaint"),
        "refiner": tiny_checkpoint(folder / "refiner", seed=1, kind="refiner"),
    }


@pytest.fixture(scope="module", params=FORMATS)
def engine(
    request: pytest.FixtureRequest,
    checkpoints: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    """Base, and twice its bundle with another U-Net."""
    to = FORMATS[request.param]
    runtime = make_runtime(request.param)
    if to == "diffusers":
        base = open_bundle(checkpoints["base"])
        whole = {kind: open_bundle(checkpoints[kind]) for kind in ("inpaint", "refiner")}
        unets = {kind: bundle.artifacts["unet"] for kind, bundle in whole.items()}
    else:
        base = open_bundle(request.getfixturevalue(f"{to}_folder"))
        folder = tmp_path_factory.mktemp(f"{to}-unets")
        # Core ML's shapes are fixed: the base bundle's U-Net takes both halves of guidance alone.
        kinds = KINDS if to == "coreml" else KINDS[1:]
        unets = {kind: exported_unet(to, checkpoints[kind], folder / kind) for kind in kinds}
    configs = {kind: read_sdxl_config(folder) for kind, folder in checkpoints.items()}
    with_others = {
        kind: replace(base, config=configs[kind], artifacts={**base.artifacts, "unet": unet})
        for kind, unet in unets.items()
    }
    return Engine(runtime=runtime, bundles={"base": base, **with_others})


def exported_unet(to: FormatName, checkpoint: Path, folder: Path) -> Artifact:
    """In this process, which has torch already. Of one row where shapes are fixed."""
    job = ExportJob(
        checkpoint=str(checkpoint),
        variant=None,
        component="unet",
        format=to,
        settings=ExportSettings(coreml=CoreMlSettings(batch=1)),
        bundle=str(folder),
    )
    (folder / "unet").mkdir(parents=True)
    record = export_component(job, report=lambda _, __: None)
    config = read_sdxl_config(checkpoint)
    paths = artifact_paths(folder, "unet", config, artifact_format=to)
    made = make_artifact("unet", config, paths=paths, artifact_format=to)
    return replace(made, record=record)


@pytest.fixture(scope="module")
def pipelines(
    pipeline: StableDiffusionXLPipeline, checkpoints: Mapping[str, Path]
) -> Mapping[str, Callable[..., object]]:
    """diffusers' pipelines by what they do, all with the base checkpoint's other networks."""
    unets = {
        kind: UNet2DConditionModel.from_pretrained(checkpoints[kind], subfolder="unet")
        for kind in ("inpaint", "refiner")
    }
    shared = pipeline.components
    refiner = {
        **shared,
        "unet": unets["refiner"],
        "text_encoder": None,
        "tokenizer": None,
    }
    made = {
        "text": pipeline,
        "image": StableDiffusionXLImg2ImgPipeline(**shared),
        "mask": StableDiffusionXLInpaintPipeline(**shared),
        "mask, nine channels": StableDiffusionXLInpaintPipeline(
            **{**shared, "unet": unets["inpaint"]}
        ),
        "refiner": StableDiffusionXLImg2ImgPipeline(
            **refiner, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
        ),
    }
    for one in made.values():
        one.set_progress_bar_config(disable=True)
    return made


# Both sides of a run


@dataclass(frozen=True, kw_only=True)
class Run:
    steps: list[Latents]
    pixels: ImagePixels


def ours(
    engine: Engine,
    settings: Settings,
    *,
    kind: str = "base",
    callback: StepCallback | None = None,
    tensors: tuple[str, ...] = ("latents",),
) -> tuple[Run, StepEvent]:
    bundle = engine.bundles[kind]
    prepared = prepare(bundle, engine.runtime, settings)
    steps: list[Latents] = []
    events = denoise(
        bundle,
        engine.runtime,
        prepared,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=tensors,
    )
    *_, last = observe(events, [lambda event: steps.append(event.latents.copy())])
    image = decode(bundle, engine.runtime, {"final": steps[-1]})["final"]
    return Run(steps=steps, pixels=pixels_from_image(image)), last


class Keeping:
    """diffusers' side of a callback: what the wrapped one does, and then the latents are kept."""

    def __init__(self, callback: Callable[..., dict[str, torch.Tensor]] | None = None) -> None:
        self._callback = callback
        self.steps: list[Latents] = []

    def __call__(
        self, pipe: object, index: int, timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        latents = tensors["latents"]
        if self._callback is not None:
            tensors = self._callback(pipe, index, timestep, tensors)
            latents = tensors.get("latents", latents)
        self.steps.append(latents.numpy().copy())
        return tensors


def theirs(
    call: Callable[..., object],
    *,
    generator: torch.Generator | None = None,
    callback: Callable[..., dict[str, torch.Tensor]] | None = None,
    tensors: tuple[str, ...] = (),
    output_type: str = "np",
    **settings: object,
) -> Run:
    keeping = Keeping(callback)
    made = call(
        prompt=PROMPT,
        generator=generator or torch.Generator("cpu").manual_seed(SEED),
        output_type=output_type,
        callback_on_step_end=keeping,
        callback_on_step_end_tensor_inputs=sorted({"latents", *tensors}),
        **settings,
    )
    images = made.images  # type: ignore[attr-defined]
    pixels = np.zeros((0, 8, 8, 3), np.uint8)
    if output_type == "np":
        pixels = np.round(images * 255).astype(np.uint8)
    return Run(steps=keeping.steps, pixels=pixels)


def assert_same(actual: Run, expected: Run) -> None:
    assert len(actual.steps) == len(expected.steps)
    errors = [rel_l2(got, want) for got, want in zip(actual.steps, expected.steps, strict=True)]
    assert all(error < LIMIT for error in errors), errors  # NaN is not less
    difference = np.abs(actual.pixels.astype(int) - expected.pixels.astype(int))
    assert difference.max() <= LEVELS
    assert (difference > 0).mean() < 0.01


def settings_for(**changes: object) -> Settings:
    settings = Settings(prompts=Prompts(prompt=(PROMPT,)), num_inference_steps=5, seeds=(SEED,))
    return replace(settings, **changes)  # type: ignore[arg-type]


def unit(picture: Array) -> torch.Tensor:
    return torch.from_numpy((picture + 1) / 2)


PICTURE = smooth_picture(SIZE_PX, SIZE_PX)
MASK = np.zeros((1, 1, SIZE_PX, SIZE_PX), np.float32)
MASK[..., 24:90, 40:] = 1


# The pipelines


def test_text_to_image(engine: Engine, pipelines: Mapping[str, Callable[..., object]]) -> None:
    expected = theirs(pipelines["text"], num_inference_steps=5)
    assert_same(ours(engine, settings_for())[0], expected)


def test_image_to_image(engine: Engine, pipelines: Mapping[str, Callable[..., object]]) -> None:
    expected = theirs(pipelines["image"], image=unit(PICTURE), strength=0.6, num_inference_steps=5)
    settings = settings_for(start=ImageStart(image=PICTURE, strength=0.6))
    assert_same(ours(engine, settings)[0], expected)


@pytest.mark.parametrize(("which", "kind"), [("mask", "base"), ("mask, nine channels", "inpaint")])
def test_inpainting(
    which: str, kind: str, engine: Engine, pipelines: Mapping[str, Callable[..., object]]
) -> None:
    expected = theirs(
        pipelines[which],
        image=unit(PICTURE),
        mask_image=torch.from_numpy(MASK),
        height=SIZE_PX,
        width=SIZE_PX,
        strength=0.8,
        guidance_scale=7.5,
        num_inference_steps=5,
    )
    settings = settings_for(
        guidance_scale=7.5, start=ImageStart(image=PICTURE, mask=MASK, strength=0.8)
    )
    assert_same(ours(engine, settings, kind=kind)[0], expected)


def test_an_ensemble_of_base_and_refiner(
    engine: Engine, pipelines: Mapping[str, Callable[..., object]]
) -> None:
    generator = torch.Generator("cpu").manual_seed(SEED)
    first = theirs(
        pipelines["text"],
        generator=generator,
        denoising_end=0.6,
        num_inference_steps=5,
        output_type="latent",
    )
    second = theirs(
        pipelines["refiner"],
        generator=generator,
        image=torch.from_numpy(first.steps[-1]),
        denoising_start=0.6,
        num_inference_steps=5,
    )
    _, last = ours(engine, settings_for(denoising_end=0.6))
    settings = settings_for(
        start=ImageStart(latents=last.latents.copy()),
        denoising_start=0.6,
        noise_stream=last.noise_stream,
    )
    assert len(first.steps) + len(second.steps) == 5
    assert_same(ours(engine, settings, kind="refiner")[0], second)


def test_a_refiner_over_finished_latents(
    engine: Engine, pipelines: Mapping[str, Callable[..., object]]
) -> None:
    generator = torch.Generator("cpu").manual_seed(SEED)
    first = theirs(
        pipelines["text"], generator=generator, num_inference_steps=4, output_type="latent"
    )
    second = theirs(
        pipelines["refiner"],
        generator=generator,
        image=torch.from_numpy(first.steps[-1]),
        strength=0.5,
        num_inference_steps=4,
    )
    _, last = ours(engine, settings_for(num_inference_steps=4))
    settings = settings_for(
        num_inference_steps=4,
        start=ImageStart(latents=last.latents.copy(), strength=0.5),
        noise_stream=last.noise_stream,
    )
    assert_same(ours(engine, settings, kind="refiner")[0], second)


def test_a_turbo_run_of_one_step(
    engine: Engine, pipelines: Mapping[str, Callable[..., object]]
) -> None:
    expected = theirs(pipelines["text"], guidance_scale=0.0, num_inference_steps=1)
    actual, _ = ours(engine, settings_for(guidance_scale=0.0, num_inference_steps=1))
    assert_same(actual, expected)


# Callbacks


CONDITIONING = ("prompt_embeds", "add_text_embeds", "add_time_ids")


def dynamic_guidance(
    pipe: SamplingRun, step_index: int, timestep: float, callback_kwargs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """diffusers' guide, "Dynamic classifier-free guidance", for SDXL's three tensors."""
    del timestep
    # adjust the batch_size of prompt_embeds according to guidance_scale
    if step_index == int(pipe.num_timesteps * 0.4):
        for name in CONDITIONING:
            callback_kwargs[name] = callback_kwargs[name].chunk(2)[-1]
        # update guidance_scale
        pipe._guidance_scale = 0.0
    return callback_kwargs


def interrupt_callback(
    pipe: SamplingRun, i: int, t: float, callback_kwargs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """diffusers' guide, "Interrupt the diffusion process"."""
    del t
    stop_idx = 2
    if i == stop_idx:
        pipe._interrupt = True
    return callback_kwargs


def latents_to_rgb(latents: torch.Tensor) -> Array:
    """diffusers' guide, "Display image after each generation step"."""
    weights = ((60, -60, 25, -70), (60, -5, 15, -50), (60, 10, -5, -35))
    weights_tensor = torch.t(torch.tensor(weights, dtype=latents.dtype).to(latents.device))
    biases_tensor = torch.tensor((150, 140, 130), dtype=latents.dtype).to(latents.device)
    rgb_tensor = torch.einsum("...lxy,lr -> ...rxy", latents, weights_tensor)
    rgb_tensor = rgb_tensor + biases_tensor.unsqueeze(-1).unsqueeze(-1)
    image: Array = rgb_tensor.clamp(0, 255).byte().cpu().numpy().transpose(1, 2, 0)
    return image


class DecodeTensors:
    """The same guide's decode_tensors, which saves a picture of every step's latents."""

    def __init__(self) -> None:
        self.pictures: list[Array] = []

    def __call__(
        self,
        pipe: SamplingRun,
        step: int,
        timestep: float,
        callback_kwargs: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        del pipe, step, timestep
        self.pictures.append(latents_to_rgb(callback_kwargs["latents"][0]))
        return callback_kwargs


def written_for_diffusers(callback: object) -> StepCallback:
    return with_torch_tensors(callback)  # type: ignore[arg-type]  # torch tensors in its signature


TheirCallback: TypeAlias = Callable[..., dict[str, torch.Tensor]]

CUTOFF = SDXLCFGCutoffCallback(cutoff_step_ratio=0.4)
CALLBACKS: Mapping[str, tuple[TheirCallback, StepCallback, tuple[str, ...]]] = {
    "diffusers' cutoff": (CUTOFF, CUTOFF, CONDITIONING),
    "dynamic guidance": (dynamic_guidance, written_for_diffusers(dynamic_guidance), CONDITIONING),
    "interrupt": (interrupt_callback, written_for_diffusers(interrupt_callback), ("latents",)),
}
"""Each for either side, and the tensors that it takes."""


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_written_for_diffusers(
    name: str, engine: Engine, pipelines: Mapping[str, Callable[..., object]]
) -> None:
    on_their_side, on_ours, tensors = CALLBACKS[name]
    expected = theirs(
        pipelines["text"], num_inference_steps=5, callback=on_their_side, tensors=tensors
    )
    actual, _ = ours(engine, settings_for(), callback=on_ours, tensors=tensors)
    undisturbed = theirs(pipelines["text"], num_inference_steps=5)
    assert_same(actual, expected)
    assert rel_l2(expected.steps[-1], undisturbed.steps[-1]) > 1e-2


def test_previews_of_every_step(
    engine: Engine, pipelines: Mapping[str, Callable[..., object]]
) -> None:
    wanted, got = DecodeTensors(), DecodeTensors()
    theirs(pipelines["text"], num_inference_steps=3, callback=wanted)
    settings = settings_for(num_inference_steps=3)
    actual, _ = ours(engine, settings, callback=written_for_diffusers(got))
    assert len(got.pictures) == len(wanted.pictures) == 3
    for latents, picture, expected in zip(actual.steps, got.pictures, wanted.pictures, strict=True):
        assert np.abs(picture.astype(int) - expected.astype(int)).max() <= LEVELS
        assert np.abs(preview_pixels(latents)[0].astype(int) - picture.astype(int)).max() <= LEVELS
