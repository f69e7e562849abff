"""Text and images to images on any runtime, in three acts: prepare, denoise, decode.

Each act opens the components it needs and closes them again, so that the largest one bounds the
memory, not the sum.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import final

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.models.tokenizer import load_tokenizer
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.callbacks import StepCallback
from triptych.sampling.conditioning import (
    Conditioning,
    EncodedPrompts,
    MicroConditioning,
    Prompts,
    encode_prompts,
    make_conditioning,
)
from triptych.sampling.decode import decode_latents
from triptych.sampling.guidance import GuidanceMode, is_guided
from triptych.sampling.loop import StepEvent, iterate
from triptych.sampling.prompt_embeddings import PromptEmbeddings, encoded_from_embeddings
from triptych.sampling.run_part import RunPart, part_between, part_by_strength, whole_run
from triptych.sampling.schedule import Schedule
from triptych.sampling.schedulers import SamplerMaker, SchedulerChoice, read_sampler
from triptych.sampling.solvers.base import Solver
from triptych.sampling.start import ImageStart, Start, start_from_image, start_from_noise
from triptych.types import ComponentName, ImageFloats, Latents

TOKENIZER_FOLDERS: Mapping[ComponentName, str] = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
}


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
        height_px: of the pictures, divisible by 8; None takes the only size that a
            bundle of fixed shapes makes, or the one the model was trained at.
        width_px: as `height_px`.
        num_images_per_prompt: pictures for each prompt.
        seeds: one for the whole batch, or one a picture, as diffusers' generator argument.
        noise: unit noise to start from instead of a seed's.
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
    height_px: int | None = None
    width_px: int | None = None
    num_images_per_prompt: int = 1
    seeds: tuple[int, ...] = (0,)
    noise: Latents | None = None
    sizes: MicroConditioning = field(default_factory=MicroConditioning)
    start: ImageStart | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything the loop needs, once the text encoders have run.

    Attributes:
        settings: what was asked for.
        height_px: of the pictures.
        width_px: of the pictures.
        schedule: timesteps and sigmas.
        solver: goes through the schedule.
        encoded: the prompts.
        conditioning: for the U-Net, both halves where guided.
        part: the steps of the schedule to take.
        start: the first latents, and where the generators stand after them.
        executions: what the text encoders ran on; empty where they did not run.
    """

    settings: Settings
    height_px: int
    width_px: int
    schedule: Schedule
    solver: Solver
    encoded: EncodedPrompts
    conditioning: Conditioning
    part: RunPart
    start: Start
    executions: Mapping[ComponentName, Execution]


def prepare(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    *,
    make_sampler: SamplerMaker = read_sampler,
) -> Prepared:
    """Check the settings, encode the prompts, draw the noise.

    Args:
        bundle: what to sample from.
        runtime: what its text encoders run on.
        settings: what to draw.
        make_sampler: makes the schedule and the solver, for schedulers that are not triptych's.

    Raises:
        UsageError: settings that cannot be.
        ScheduleError: the scheduler config cannot be followed.
        BundleError: a component or an asset is missing.
    """
    _check_numbers(settings)
    height_px, width_px = _picture_size(bundle, settings)
    sampler = make_sampler(
        bundle.folder / "scheduler" / "scheduler_config.json",
        settings.scheduler,
        num_inference_steps=settings.num_inference_steps,
    )
    part = chosen_part(settings, sampler.schedule)
    start = _start(
        bundle, runtime, settings, sampler.schedule, part=part, size_px=(height_px, width_px)
    )
    encoded, executions = _encoded(bundle, runtime, settings)
    conditioning = make_conditioning(
        encoded,
        settings.sizes,
        config=bundle.config,
        picture_size=(height_px, width_px),
        num_images_per_prompt=settings.num_images_per_prompt,
        guided=is_guided(settings.guidance_scale),
        from_image=settings.start is not None,
    )
    return Prepared(
        settings=settings,
        height_px=height_px,
        width_px=width_px,
        schedule=sampler.schedule,
        solver=sampler.solver,
        encoded=encoded,
        conditioning=conditioning,
        part=part,
        start=start,
        executions=executions,
    )


def denoise(
    bundle: Bundle,
    runtime: Runtime,
    prepared: Prepared,
    *,
    callback_on_step_end: StepCallback | None = None,
    callback_on_step_end_tensor_inputs: Iterable[str] = ("latents",),
    on_open: Callable[[Execution], None] | None = None,
) -> Iterator[StepEvent]:
    """Open the U-Net, yield the steps, close it when the last is taken or the caller stops.

    Args:
        bundle: holds the U-Net.
        runtime: the engine.
        prepared: the run.
        callback_on_step_end: diffusers' contract.
        callback_on_step_end_tensor_inputs: what the callback is given.
        on_open: told what the U-Net runs on, before the first step.
    """
    with open_session(runtime, bundle, "unet") as unet:
        if on_open is not None:
            on_open(unet.execution)
        yield from iterate(
            unet,
            schedule=prepared.schedule,
            solver=prepared.solver,
            latents=prepared.start.latents,
            conditioning=prepared.conditioning,
            noise=prepared.start.noise_stream,
            part=prepared.part,
            guidance_scale=prepared.settings.guidance_scale,
            guidance_mode=prepared.settings.guidance_mode,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )


def decode(
    bundle: Bundle, runtime: Runtime, latents: Mapping[str, Latents]
) -> dict[str, ImageFloats]:
    """Open the VAE decoder once and decode several latents, by name."""
    with open_session(runtime, bundle, "vae_decoder") as decoder:
        return {
            name: decode_latents(decoder, values, config=bundle.config)
            for name, values in latents.items()
        }


def _picture_size(bundle: Bundle, settings: Settings) -> tuple[int, int]:
    scale = bundle.config.vae_scale_factor
    trained = bundle.config.sample_size * scale
    built = bundle.built_size_px
    usual = built or (trained, trained)
    if settings.start is not None:
        if settings.height_px is not None or settings.width_px is not None:
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


def _check_numbers(settings: Settings) -> None:
    if settings.num_images_per_prompt < 1:
        raise UsageError(
            f"num_images_per_prompt: got {settings.num_images_per_prompt}, want at least 1."
        )
    if not math.isfinite(settings.guidance_scale):
        raise UsageError(f"guidance_scale: got {settings.guidance_scale}, want a finite number.")


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


def _start(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    schedule: Schedule,
    *,
    part: RunPart,
    size_px: tuple[int, int],
) -> Start:
    count = settings.prompts.count * settings.num_images_per_prompt
    if settings.start is not None:
        return start_from_image(
            bundle,
            runtime,
            settings.start,
            schedule,
            part=part,
            count=count,
            seeds=settings.seeds,
            given=settings.noise,
            is_noised=settings.denoising_start is not None,
        )
    if bundle.config.kind == "refiner":
        raise UsageError(
            f"{bundle.folder}: got a refiner and nothing to refine, want a picture or latents to "
            "start from. A refiner continues from another model's latents."
        )
    scale = bundle.config.vae_scale_factor
    shape = (count, bundle.config.latent_channels, size_px[0] // scale, size_px[1] // scale)
    return start_from_noise(shape, schedule, seeds=settings.seeds, given=settings.noise)


def _encoded(
    bundle: Bundle, runtime: Runtime, settings: Settings
) -> tuple[EncodedPrompts, dict[ComponentName, Execution]]:
    match settings.prompts:
        case Prompts() as prompts:
            return encode(bundle, runtime, prompts)
        case PromptEmbeddings() as embeddings:
            guided = is_guided(settings.guidance_scale)
            return encoded_from_embeddings(embeddings, config=bundle.config, guided=guided), {}


def encode(
    bundle: Bundle, runtime: Runtime, prompts: Prompts
) -> tuple[EncodedPrompts, dict[ComponentName, Execution]]:
    """Open the text encoders, run the prompts through them, close them.

    Raises:
        UsageError: the prompts' counts differ, or their weighting cannot be read, or `clip_skip`
            is more than there is.
        BundleError: a text encoder or a tokenizer is missing.
    """
    encoders = [name for name in bundle.config.components if name in TOKENIZER_FOLDERS]
    tokenizers = {
        name: load_tokenizer(bundle.folder / TOKENIZER_FOLDERS[name]) for name in encoders
    }
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(
                open_session(runtime, bundle, name, clip_skip=prompts.clip_skip)
            )
            for name in encoders
        }
        encoded = encode_prompts(
            prompts, networks=sessions, tokenizers=tokenizers, config=bundle.config
        )
        return encoded, {name: session.execution for name, session in sessions.items()}
