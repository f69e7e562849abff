"""What a golden's manifest says of its run: `Settings`, without the arrays."""

from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError
from triptych.sampling.guidance import GuidanceMode
from triptych.sampling.image_start import ImageStart
from triptych.sampling.micro_conditioning import MicroConditioning
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.scheduler_config import SigmaSpacing
from triptych.sampling.schedulers import SchedulerChoice
from triptych.sampling.settings import Settings
from triptych.types import TensorMap


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """What was asked for: the fields of `Settings` and of its parts that JSON can hold."""

    prompts: Prompts
    num_inference_steps: int
    scheduler: str | None
    sigma_spacing: SigmaSpacing | None
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    eta: float
    guidance_scale: float
    guidance_mode: GuidanceMode
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    guidance_schedule: tuple[float, ...]
    height_px: int | None
    width_px: int | None
    aspect_ratio: float | None
    num_images_per_prompt: int
    seeds: tuple[int, ...]
    sizes: MicroConditioning
    strength: float | None
    denoising_start: float | None
    denoising_end: float | None


def run_entry_from_settings(settings: Settings) -> RunEntry:
    """What a manifest says of a run.

    Raises:
        UsageError: settings that a file cannot hold.
    """
    prompts, scheduler = settings.prompts, settings.scheduler
    if not isinstance(prompts, Prompts) or scheduler.discretization is not None:
        raise UsageError(
            "golden: got a run from prompt embeddings or with a discretization, want prompts and "
            "a scheduler by name: a golden is repeated from what it says."
        )
    return RunEntry(
        prompts=prompts,
        num_inference_steps=settings.num_inference_steps,
        scheduler=scheduler.name,
        sigma_spacing=scheduler.sigma_spacing,
        timesteps=scheduler.timesteps,
        sigmas=scheduler.sigmas,
        eta=scheduler.eta,
        guidance_scale=settings.guidance_scale,
        guidance_mode=settings.guidance_mode,
        guidance_rescale=settings.guidance_rescale,
        guidance_interval=settings.guidance_interval,
        guidance_schedule=settings.guidance_schedule,
        height_px=settings.height_px,
        width_px=settings.width_px,
        aspect_ratio=settings.aspect_ratio,
        num_images_per_prompt=settings.num_images_per_prompt,
        seeds=settings.seeds,
        sizes=settings.sizes,
        strength=None if settings.start is None else settings.start.strength,
        denoising_start=settings.denoising_start,
        denoising_end=settings.denoising_end,
    )


def settings_from_run_entry(run: RunEntry, *, start: TensorMap) -> Settings:
    """The settings again.

    Args:
        run: what the manifest says.
        start: the arrays of the picture or the latents that the run started from.
    """
    image_start = None if run.strength is None else ImageStart(strength=run.strength, **start)
    return Settings(
        prompts=run.prompts,
        num_inference_steps=run.num_inference_steps,
        scheduler=SchedulerChoice(
            name=run.scheduler,
            sigma_spacing=run.sigma_spacing,
            timesteps=run.timesteps,
            sigmas=run.sigmas,
            eta=run.eta,
        ),
        guidance_scale=run.guidance_scale,
        guidance_mode=run.guidance_mode,
        guidance_rescale=run.guidance_rescale,
        guidance_interval=run.guidance_interval,
        guidance_schedule=run.guidance_schedule,
        height_px=run.height_px,
        width_px=run.width_px,
        aspect_ratio=run.aspect_ratio,
        num_images_per_prompt=run.num_images_per_prompt,
        seeds=run.seeds,
        sizes=run.sizes,
        start=image_start,
        denoising_start=run.denoising_start,
        denoising_end=run.denoising_end,
    )
