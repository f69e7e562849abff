"""Text and images to images on any runtime, in three acts: prepare, denoise, decode.

Each act opens the components it needs and closes them again, so that the largest one bounds the
memory, not the sum.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.models.tokenizer import load_tokenizer
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.callbacks import StepCallback
from triptych.sampling.conditioning import Conditioning, make_conditioning
from triptych.sampling.controllers import CallbackChain, GuidanceSchedule
from triptych.sampling.decode import decode_latents
from triptych.sampling.guidance import is_guided
from triptych.sampling.loop import StepEvent, iterate
from triptych.sampling.prompt_embeddings import PromptEmbeddings, encoded_from_embeddings
from triptych.sampling.prompt_encoding import EncodedPrompts, Prompts, encode_prompts
from triptych.sampling.run_part import RunPart
from triptych.sampling.schedule import Schedule
from triptych.sampling.schedulers import SamplerMaker, read_sampler
from triptych.sampling.settings import (
    Settings,
    check_settings,
    chosen_part,
    guidance_scales,
    picture_size,
)
from triptych.sampling.solvers.base import Solver
from triptych.sampling.start import Start, make_start
from triptych.types import ComponentName, ImageFloats, Latents

Encoder: TypeAlias = Callable[
    [Bundle, Runtime, Prompts], tuple[EncodedPrompts, dict[ComponentName, Execution]]
]
"""Prompts through a bundle's text encoders, and what those ran on."""

TOKENIZER_FOLDERS: Mapping[ComponentName, str] = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
}


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
        guidance_scales: of each of them.
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
    guidance_scales: tuple[float, ...]
    start: Start
    executions: Mapping[ComponentName, Execution]


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


def prepare(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    *,
    make_sampler: SamplerMaker = read_sampler,
    encoder: Encoder = encode,
) -> Prepared:
    """Check the settings, encode the prompts, draw the noise.

    Args:
        bundle: what to sample from.
        runtime: what its text encoders run on.
        settings: what to draw.
        make_sampler: makes the schedule and the solver, for schedulers that are not triptych's.
        encoder: encodes the prompts, unless the settings bring embeddings.

    Raises:
        UsageError: settings that cannot be.
        ScheduleError: the scheduler config cannot be followed.
        BundleError: a component or an asset is missing.
    """
    check_settings(bundle, settings)
    size_px = picture_size(bundle, settings)
    sampler = make_sampler(
        bundle.folder / "scheduler" / "scheduler_config.json",
        settings.scheduler,
        num_inference_steps=settings.num_inference_steps,
    )
    part = chosen_part(settings, sampler.schedule)
    scales = guidance_scales(settings, num_steps=part.num_steps)
    is_ever_guided = any(is_guided(scale) for scale in scales)
    start = make_start(bundle, runtime, settings, sampler.schedule, part=part, size_px=size_px)
    encoded, executions = _encoded(
        bundle, runtime, settings, guided=is_ever_guided, encoder=encoder
    )
    conditioning = make_conditioning(
        encoded,
        settings.sizes,
        config=bundle.config,
        picture_size=size_px,
        num_images_per_prompt=settings.num_images_per_prompt,
        guided=is_ever_guided,
        from_image=settings.start is not None,
    )
    return Prepared(
        settings=settings,
        height_px=size_px[0],
        width_px=size_px[1],
        schedule=sampler.schedule,
        solver=sampler.solver,
        encoded=encoded,
        conditioning=conditioning,
        part=part,
        guidance_scales=scales,
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
        callback_on_step_end: diffusers' contract. Where guidance changes by the settings, it is
            called after that, with the scale of the next step set.
        callback_on_step_end_tensor_inputs: what the callback is given.
        on_open: told what the U-Net runs on, before the first step.
    """
    callback = callback_on_step_end
    scales = prepared.guidance_scales
    if len(set(scales)) > 1:
        others = () if callback is None else (callback,)
        callback = CallbackChain(
            (GuidanceSchedule(scales=scales), *others),
            given=tuple(callback_on_step_end_tensor_inputs),
        )
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
            inpaint=prepared.start.inpaint,
            guidance_scale=scales[0],
            guidance_mode=prepared.settings.guidance_mode,
            guidance_rescale=prepared.settings.guidance_rescale,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )


def decode(
    bundle: Bundle, runtime: Runtime, latents: Mapping[str, Latents]
) -> dict[str, ImageFloats]:
    """Open the VAE decoder once and decode several latents, by name.

    Raises:
        BundleError: there is none.
    """
    with open_session(runtime, bundle, "vae_decoder") as decoder:
        return {
            name: decode_latents(decoder, values, config=bundle.config)
            for name, values in latents.items()
        }


def decode_previews(
    bundle: Bundle, runtime: Runtime, latents: Mapping[str, Latents]
) -> dict[str, ImageFloats]:
    """As `decode`, by the small decoder that the bundle has for it.

    Raises:
        BundleError: it has none.
    """
    with open_session(runtime, bundle, "preview_decoder") as decoder:
        return {
            name: decoder.run({"latents": np.ascontiguousarray(values)})["image"]
            for name, values in latents.items()
        }


def _encoded(
    bundle: Bundle, runtime: Runtime, settings: Settings, *, guided: bool, encoder: Encoder
) -> tuple[EncodedPrompts, dict[ComponentName, Execution]]:
    match settings.prompts:
        case Prompts() as prompts:
            return encoder(bundle, runtime, prompts)
        case PromptEmbeddings() as embeddings:
            return encoded_from_embeddings(embeddings, config=bundle.config, guided=guided), {}
