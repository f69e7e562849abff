"""The plan of a run: one model from start to end, or a second one that goes on from the first."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import UsageError
from triptych.runtimes import runtimes_for
from triptych.runtimes.base import Runtime
from triptych.sampling.image_start import ImageStart
from triptych.sampling.loop import StepEvent
from triptych.sampling.observers import check_save_steps
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings, check_settings, chosen_part, picture_size
from triptych.types import Array, ImagePixels
from triptych.workflows.diffusers_schedulers import read_any_sampler
from triptych.workflows.image_file import read_image
from triptych.workflows.inpaint_files import InpaintFiles, read_inpaint_files
from triptych.workflows.runtime_choice import choose_runtime
from triptych.workflows.sample_request import ImageFiles, RefinerRequest, SampleRequest


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One model's part of a run.

    Attributes:
        bundle: the model.
        runtime: what it runs on.
        settings: what it draws. Where a stage comes before it, `handed_over` completes them.
        steps: the numbers of its steps in the whole run, from 1.
    """

    bundle: Bundle
    runtime: Runtime
    settings: Settings
    steps: range


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All of a run, checked as far as it can be before anything is computed.

    Attributes:
        stages: one, or two with a refiner.
        save_steps: whose pictures are saved.
        inpaint: the picture and mask that it starts from, where there is a mask.
    """

    stages: tuple[Stage, ...]
    save_steps: tuple[int, ...]
    inpaint: InpaintFiles | None

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.stages[-1].steps.stop - 1

    def finished(self, pixels: ImagePixels) -> Array:
        """Pictures as they are saved: a part of a picture goes back into it."""
        return pixels if self.inpaint is None else self.inpaint.pasted_back(pixels)


def plan_run(request: SampleRequest) -> Plan:
    """Open the bundles and the pictures, and count the steps.

    Raises:
        UsageError: settings that cannot be.
        BundleError: a bundle is incomplete.
        ScheduleError: a scheduler config cannot be followed.
        BackendError: an engine is missing.
    """
    bundle = open_bundle(request.bundle, variant=request.variant)
    runtime = choose_runtime(bundle, request.runtime, request.runtime_settings)
    settings, inpaint = request.settings, None
    if request.pictures is not None:
        settings, inpaint = _with_pictures(settings, request.pictures, bundle)
    if request.refiner is not None and request.refiner.denoising_split is not None:
        if settings.denoising_end is not None:
            raise UsageError(
                f"denoising_end: got {settings.denoising_end:g} beside denoising_split "
                f"{request.refiner.denoising_split:g}, want one of them."
            )
        settings = replace(settings, denoising_end=request.refiner.denoising_split)
    stages = [_stage(bundle, runtime, settings, first_step=1)]
    if request.refiner is not None:
        stages.append(_refiner_stage(request.refiner, request, stages[0]))
    if request.previews == "preview-decoder":
        for stage in stages:
            stage.bundle.artifact("preview_decoder")
    total = stages[-1].steps.stop - 1
    return Plan(
        stages=tuple(stages),
        save_steps=check_save_steps(request.save_steps or (total,), num_inference_steps=total),
        inpaint=inpaint,
    )


def handed_over(stage: Stage, event: StepEvent) -> Settings:
    """A stage's settings, starting from the last step of the stage before.

    The generators go on from where they stand, as one torch generator given to both pipelines.
    """
    assert stage.settings.start is not None  # noqa: S101  _refiner_stage gives it one
    start = replace(stage.settings.start, latents=event.latents.copy())
    return replace(stage.settings, start=start, noise_stream=event.noise_stream)


def count_steps(bundle: Bundle, settings: Settings) -> int:
    """The steps of a run, with its settings checked.

    Some schedulers evaluate the U-Net more often than they are asked for steps, and a picture to
    start from leaves fewer.

    Raises:
        UsageError: settings that cannot be.
        ScheduleError: the scheduler config cannot be followed.
    """
    check_settings(bundle, settings)
    picture_size(bundle, settings)
    sampler = read_any_sampler(
        bundle.folder / "scheduler" / "scheduler_config.json",
        settings.scheduler,
        num_inference_steps=settings.num_inference_steps,
    )
    return chosen_part(settings, sampler.schedule).num_steps


def _stage(bundle: Bundle, runtime: Runtime, settings: Settings, *, first_step: int) -> Stage:
    steps = range(first_step, first_step + count_steps(bundle, settings))
    return Stage(bundle=bundle, runtime=runtime, settings=settings, steps=steps)


def _refiner_stage(refiner: RefinerRequest, request: SampleRequest, base: Stage) -> Stage:
    if not isinstance(base.settings.prompts, Prompts):
        raise UsageError(
            "refiner: got prompts that are encoded for the base model, want them as text: the "
            "refiner has a text encoder of its own."
        )
    bundle = open_bundle(refiner.bundle, variant=refiner.variant).completed_from(base.bundle)
    name = refiner.runtime
    if name is None and base.runtime.name in runtimes_for(bundle.format):
        name = base.runtime.name
    runtime = choose_runtime(bundle, name, request.runtime_settings)
    size_px = picture_size(base.bundle, base.settings)
    scale = bundle.config.vae_scale_factor
    shape = (
        base.settings.num_pictures,
        bundle.config.latent_channels,
        size_px[0] // scale,
        size_px[1] // scale,
    )
    settings = replace(
        base.settings,
        height_px=None,
        width_px=None,
        aspect_ratio=None,
        noise=None,
        guidance_schedule=(),
        guidance_interval=(0.0, 1.0),
        start=ImageStart(
            latents=np.zeros(shape, np.float32),  # until the base model has run
            strength=refiner.strength,
            mask=None if base.settings.start is None else base.settings.start.mask,
        ),
        denoising_start=refiner.denoising_split,
        denoising_end=None,
    )
    return _stage(bundle, runtime, settings, first_step=base.steps.stop)


def _with_pictures(
    settings: Settings, files: ImageFiles, bundle: Bundle
) -> tuple[Settings, InpaintFiles | None]:
    """The settings, starting from the files that were asked for.

    Raises:
        UsageError: a file is no picture, or its size cannot be.
    """
    scale = bundle.config.vae_scale_factor
    size_px = _asked_size(settings) or bundle.built_size_px
    inpaint = None
    if files.mask is None:
        if files.padding_mask_crop is not None:
            raise UsageError("padding_mask_crop: got one without a mask, want both.")
        start = ImageStart(
            image=read_image(files.image, size_px=size_px, scale=scale), strength=files.strength
        )
    else:
        if size_px is None and files.padding_mask_crop is not None:
            size_px = (bundle.config.sample_size * scale,) * 2
        inpaint = read_inpaint_files(
            files.image,
            files.mask,
            size_px=size_px,
            scale=scale,
            padding_mask_crop=files.padding_mask_crop,
        )
        start = ImageStart(image=inpaint.image, mask=inpaint.mask, strength=files.strength)
    return replace(settings, start=start, height_px=None, width_px=None), inpaint


def _asked_size(settings: Settings) -> tuple[int, int] | None:
    height_px, width_px = settings.height_px, settings.width_px
    if height_px is None and width_px is None:
        return None
    if height_px is None or width_px is None:
        raise UsageError("height_px, width_px: got one with an image, want both or neither.")
    return height_px, width_px
