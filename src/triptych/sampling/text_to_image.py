"""Text to image on any runtime, in three acts: prepare, denoise, decode.

Each act opens the components it needs and closes them again, so that the largest one bounds the
memory, not the sum.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import final

import numpy as np

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
from triptych.sampling.noise import initial_noise
from triptych.sampling.prompt_embeddings import PromptEmbeddings, encoded_from_embeddings
from triptych.sampling.schedule import Schedule, make_schedule, read_scheduler_config
from triptych.sampling.solvers import solver_for
from triptych.sampling.solvers.base import Solver
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
        num_inference_steps: steps of the run.
        guidance_scale: w; up to 1 means no guidance.
        guidance_mode: one U-Net call a step, or two.
        height_px: of the pictures, divisible by 8; None takes the only size that a
            bundle of fixed shapes makes, or the one the model was trained at.
        width_px: as `height_px`.
        num_images_per_prompt: pictures for each prompt.
        seeds: one for the whole batch, or one a picture, as diffusers' generator argument.
        noise: unit noise to start from instead of a seed's.
        sizes: micro-conditioning; sizes left open take the picture's.
    """

    prompts: Prompts | PromptEmbeddings
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_mode: GuidanceMode = "batched"
    height_px: int | None = None
    width_px: int | None = None
    num_images_per_prompt: int = 1
    seeds: tuple[int, ...] = (0,)
    noise: Latents | None = None
    sizes: MicroConditioning = field(default_factory=MicroConditioning)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything the loop needs, once the text encoders have run.

    Attributes:
        settings: what was asked for.
        height_px: of the pictures.
        width_px: of the pictures.
        schedule: timesteps and sigmas.
        solver: the scheduler config's.
        encoded: the prompts.
        conditioning: for the U-Net, both halves where guided.
        noise: the unit noise, before `schedule.init_noise_sigma`.
        executions: what the text encoders ran on; empty where they did not run.
    """

    settings: Settings
    height_px: int
    width_px: int
    schedule: Schedule
    solver: Solver
    encoded: EncodedPrompts
    conditioning: Conditioning
    noise: Latents
    executions: Mapping[ComponentName, Execution]


def prepare(bundle: Bundle, runtime: Runtime, settings: Settings) -> Prepared:
    """Check the settings, encode the prompts, draw the noise.

    Raises:
        UsageError: settings that cannot be.
        ScheduleError: the scheduler config cannot be followed.
        BundleError: a component or an asset is missing.
    """
    _check_numbers(settings)
    height_px, width_px = _picture_size(bundle, settings)
    scheduler = read_scheduler_config(bundle.folder / "scheduler" / "scheduler_config.json")
    schedule = make_schedule(scheduler, num_inference_steps=settings.num_inference_steps)
    solver = solver_for(scheduler.class_name)
    noise = _starting_noise(bundle, settings, height_px=height_px, width_px=width_px)
    encoded, executions = _encoded(bundle, runtime, settings)
    conditioning = make_conditioning(
        encoded,
        settings.sizes,
        config=bundle.config,
        picture_size=(height_px, width_px),
        num_images_per_prompt=settings.num_images_per_prompt,
        guided=is_guided(settings.guidance_scale),
    )
    return Prepared(
        settings=settings,
        height_px=height_px,
        width_px=width_px,
        schedule=schedule,
        solver=solver,
        encoded=encoded,
        conditioning=conditioning,
        noise=noise,
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
    start = prepared.noise * np.float32(prepared.schedule.init_noise_sigma)
    with open_session(runtime, bundle, "unet") as unet:
        if on_open is not None:
            on_open(unet.execution)
        yield from iterate(
            unet,
            schedule=prepared.schedule,
            solver=prepared.solver,
            latents=start,
            conditioning=prepared.conditioning,
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
    height_px = usual[0] if settings.height_px is None else settings.height_px
    width_px = usual[1] if settings.width_px is None else settings.width_px
    for name, length in (("height_px", height_px), ("width_px", width_px)):
        if length <= 0 or length % scale:
            raise UsageError(f"{name}: got {length}, want a positive multiple of {scale}.")
    if built not in (None, (height_px, width_px)):
        raise UsageError(
            f"{bundle.folder}: got a picture of {height_px} x {width_px} px, want "
            f"{usual[0]} x {usual[1]} (height x width), the only size it was built for. "
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


def _starting_noise(
    bundle: Bundle, settings: Settings, *, height_px: int, width_px: int
) -> Latents:
    scale = bundle.config.vae_scale_factor
    count = settings.prompts.count * settings.num_images_per_prompt
    shape = (count, bundle.config.latent_channels, height_px // scale, width_px // scale)
    if settings.noise is None:
        return initial_noise(shape=shape, seeds=settings.seeds)
    if settings.noise.shape != shape:
        raise UsageError(
            f"latents: got {list(settings.noise.shape)}, want {list(shape)} "
            f"for {count} pictures of {height_px} x {width_px} px."
        )
    return settings.noise.astype(np.float32)


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
