"""What a run is asked for, and whether it can be."""

import math
from dataclasses import dataclass, field
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.sampling.guidance import GuidanceMode
from triptych.sampling.image_start import ImageStart
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.noise import NoiseStream
from triptych.sampling.prompt_embeddings import PromptEmbeddings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.run_part import RunPart, part_between, part_by_strength, whole_run
from triptych.sampling.schedule import Schedule
from triptych.sampling.schedulers import SchedulerChoice
from triptych.sampling.size_buckets import nearest_bucket
from triptych.types import Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to draw. The names and defaults are diffusers'.

    Attributes:
        prompts: what is asked for; as embeddings, and the text encoders are not opened.
        num_inference_steps: steps of the run; some schedulers evaluate the U-Net more often.
        scheduler: which one, where it is not simply the bundle's.
        guidance_scale: w; up to 1 means no guidance.
        guidance_mode: one U-Net call a step, or two.
        guidance_rescale: phi, 0 to 1: share of a prediction that is brought back to the deviation
            that it had before guidance.
        guidance_interval: the part of the run's steps that is guided, each end 0 to 1.
        guidance_schedule: a scale for each step, in place of `guidance_scale`; empty for one.
        height_px: of the pictures, divisible by 8; None takes the only size that a
            bundle of fixed shapes makes, or the one the model was trained at.
        width_px: as `height_px`.
        aspect_ratio: width over height, for the nearest size that SDXL was trained at; instead of
            `height_px` and `width_px`.
        num_images_per_prompt: pictures for each prompt.
        seeds: one for the whole batch, or one a picture, as diffusers' generator argument.
        noise: unit noise to start from instead of a seed's.
        noise_stream: go on drawing where another run stopped, instead of from the seeds.
        sizes: micro-conditioning; sizes left open take the picture's.
        start: a picture or latents to start from; None starts from noise alone.
        denoising_start: share of the training schedule that another model has done: the start is
            its latents, and no noise is added.
        denoising_end: share after which another model goes on.
    """

    prompts: Prompts | PromptEmbeddings
    num_inference_steps: int = 50
    scheduler: SchedulerChoice = field(default_factory=SchedulerChoice)
    guidance_scale: float = 5.0
    guidance_mode: GuidanceMode = "batched"
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_schedule: tuple[float, ...] = ()
    height_px: int | None = None
    width_px: int | None = None
    aspect_ratio: float | None = None
    num_images_per_prompt: int = 1
    seeds: tuple[int, ...] = (0,)
    noise: Latents | None = None
    noise_stream: NoiseStream | None = None
    sizes: MicroConditioning = field(default_factory=MicroConditioning)
    start: ImageStart | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None

    @property
    def num_pictures(self) -> int:
        """Rows of the latents."""
        return self.prompts.count * self.num_images_per_prompt

    @property
    def first_noise_stream(self) -> NoiseStream:
        """What the run draws from."""
        return self.noise_stream or NoiseStream(seeds=self.seeds)


def check_settings(bundle: Bundle, settings: Settings) -> None:
    """Refuse what no bundle, or not this one, can draw.

    Raises:
        UsageError: as said.
    """
    if settings.num_images_per_prompt < 1:
        raise UsageError(
            f"num_images_per_prompt: got {settings.num_images_per_prompt}, want at least 1."
        )
    for scale in (settings.guidance_scale, *settings.guidance_schedule):
        if not math.isfinite(scale):
            raise UsageError(f"guidance_scale: got {scale}, want a finite number.")
    if not 0 <= settings.guidance_rescale <= 1:
        raise UsageError(f"guidance_rescale: got {settings.guidance_rescale:g}, want 0 to 1.")
    if settings.aspect_ratio is not None and not 0 < settings.aspect_ratio < math.inf:
        raise UsageError(f"aspect_ratio: got {settings.aspect_ratio:g}, want width over height.")
    first, last = settings.guidance_interval
    if not 0 <= first < last <= 1:
        raise UsageError(
            f"guidance_interval: got {first:g} to {last:g}, want two shares of the run, 0 to 1, "
            "the smaller first."
        )
    if settings.start is None and bundle.config.kind == "refiner":
        raise UsageError(
            f"{bundle.folder}: got a refiner and nothing to refine, want a picture or latents to "
            "start from. A refiner continues from another model's latents."
        )
    _check_channels(bundle, settings.start)


def _check_channels(bundle: Bundle, start: ImageStart | None) -> None:
    """A U-Net for inpainting is told the mask and the masked picture: both must be there."""
    if not bundle.config.is_inpainting:
        return
    if start is None or start.mask is None or start.image is None:
        raise UsageError(
            f"{bundle.folder}: got an inpainting U-Net of {bundle.config.unet_in_channels} "
            "channels without a picture and its mask, want both."
        )


def picture_size(bundle: Bundle, settings: Settings) -> tuple[int, int]:
    """Height and width of the pictures, in pixels.

    Raises:
        UsageError: a size that the bundle does not make, or one beside a picture's own.
    """
    scale = bundle.config.vae_scale_factor
    trained = bundle.config.sample_size * scale
    built = bundle.built_size_px
    usual = built or (trained, trained)
    is_sized = settings.height_px is not None or settings.width_px is not None
    if settings.aspect_ratio is not None:
        if is_sized or settings.start is not None:
            raise UsageError("aspect_ratio: got one beside a size or a picture, want one of them.")
        usual = nearest_bucket(settings.aspect_ratio, trained_px=trained, scale=scale)
    if settings.start is not None:
        if is_sized:
            raise UsageError("height_px, width_px: got one with a picture, want its own size.")
        usual = settings.start.size_px(scale=scale)
    height_px = usual[0] if settings.height_px is None else settings.height_px
    width_px = usual[1] if settings.width_px is None else settings.width_px
    for name, length in (("height_px", height_px), ("width_px", width_px)):
        if length <= 0 or length % scale:
            raise UsageError(f"{name}: got {length}, want a positive multiple of {scale}.")
    if built is not None and built != (height_px, width_px):
        raise UsageError(
            f"{bundle.folder}: got a picture of {height_px} x {width_px} px, want "
            f"{built[0]} x {built[1]} (height x width), the only size it was built for. "
            "Export it with --height-px and --width-px for another."
        )
    return height_px, width_px


def chosen_part(settings: Settings, schedule: Schedule) -> RunPart:
    """The steps of a schedule that a run takes.

    Raises:
        UsageError: the settings leave none, or contradict each other.
    """
    part = whole_run(schedule)
    if settings.start is None:
        if settings.denoising_start is not None:
            raise UsageError(
                f"denoising_start: got {settings.denoising_start:g} without latents to go on "
                "from, want those of the run before."
            )
    elif settings.denoising_start is None:
        part = part_by_strength(
            schedule,
            num_inference_steps=settings.num_inference_steps,
            strength=settings.start.strength,
        )
    return part_between(
        part,
        schedule,
        denoising_start=settings.denoising_start,
        denoising_end=settings.denoising_end,
    )


def guidance_scales(settings: Settings, *, num_steps: int) -> tuple[float, ...]:
    """The guidance scale of each step: at most 1, which is none, outside the interval.

    Raises:
        UsageError: the interval leaves no step guided, or the schedule is not one of `num_steps`.

    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724; counted as diffusers 0.39
    guiders/classifier_free_guidance.py does, _is_cfg_enabled.
    """
    scales = settings.guidance_schedule or (settings.guidance_scale,) * num_steps
    if len(scales) != num_steps:
        raise UsageError(
            f"guidance_schedule: got {len(scales)} scales, want {num_steps}, one for each step."
        )
    first, stop = (int(share * num_steps) for share in settings.guidance_interval)
    if first == stop:
        low, high = settings.guidance_interval
        raise UsageError(
            f"guidance_interval: got {low:g} to {high:g}, which holds none of {num_steps} steps. "
            "Widen it, or turn guidance off with guidance_scale 1."
        )
    return tuple(
        scale if first <= index < stop else min(scale, 1.0) for index, scale in enumerate(scales)
    )
