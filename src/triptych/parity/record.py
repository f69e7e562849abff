"""Recording the reference: one run, and every network alone on realistic feeds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import final

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.models.feeds import Case, component_cases, smooth_picture, unet_feed
from triptych.models.prompts import PROMPTS, prompt_ids
from triptych.models.sdxl import SdxlConfig
from triptych.parity.fingerprint import take_fingerprint
from triptych.parity.preconditions import find_preconditions
from triptych.parity.recording import RecordedCase, Recording, StageReporter
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.checked import open_session
from triptych.runtimes.kept_open import kept_open
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.decode import pixels_from_image, unscale_latents
from triptych.sampling.guidance import split_halves
from triptych.sampling.image_start import ImageStart
from triptych.sampling.inpaint import unet_sample
from triptych.sampling.noise import gaussian_noise
from triptych.sampling.observers import Recorder
from triptych.sampling.pipeline import Prepared, decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SamplerMaker, read_sampler
from triptych.sampling.settings import Settings
from triptych.types import (
    Array,
    ComponentName,
    Latents,
    Precision,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOptions:
    """How much is recorded.

    Attributes:
        pictures: decode some steps' pictures too, for people to look at.
        make_sampler: makes the schedule and the solver, for schedulers that are not triptych's.
    """

    pictures: bool = False
    make_sampler: SamplerMaker = read_sampler


def default_settings(
    config: SdxlConfig,
    *,
    num_inference_steps: int = 8,
    seed: int = 0,
    size_px: tuple[int, int] | None = None,
) -> Settings:
    """The run that a check uses: guided, with a long prompt, at the model's own size.

    A model for inpainting makes the left half of a picture anew, a refiner the second half of a
    run from latents.

    Args:
        config: the model's numbers.
        num_inference_steps: of the run.
        seed: of its noise.
        size_px: height and width of a candidate that makes no other.
    """
    height_px, width_px = size_px or (None, None)
    settings = Settings(
        prompts=Prompts(prompt=(PROMPTS[-1],)),
        height_px=height_px,
        width_px=width_px,
        num_inference_steps=num_inference_steps,
        guidance_scale=5.0,
        seeds=(seed,),
    )
    if config.kind == "base" and not config.is_inpainting:
        return settings
    start = _picture_start(config, size_px)
    return replace(settings, height_px=None, width_px=None, start=start)


def _picture_start(config: SdxlConfig, size_px: tuple[int, int] | None) -> ImageStart:
    scale = config.vae_scale_factor
    height_px, width_px = size_px or (config.sample_size * scale,) * 2
    if config.is_inpainting:
        mask = np.zeros((1, 1, height_px, width_px), np.float32)
        mask[..., : width_px // 2] = 1
        return ImageStart(image=smooth_picture(height_px, width_px), mask=mask, strength=1.0)
    shape = (1, config.latent_channels, height_px // scale, width_px // scale)
    return ImageStart(latents=gaussian_noise(shape, seed=1), strength=0.5)


def picture_steps(num_steps: int) -> tuple[int, ...]:
    """Steps whose pictures are worth looking at: the first, a quarter, half, and the last."""
    return tuple(sorted({1, max(1, num_steps // 4), max(1, num_steps // 2), num_steps}))


def record(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    *,
    options: RecordingOptions | None = None,
    report: StageReporter,
) -> Recording:
    """Run the reference once: the trajectory, and every component on realistic feeds.

    The networks of a stage are opened once for both, and closed at its end.

    Args:
        bundle: the reference, most often a checkpoint.
        runtime: the engine it runs on.
        settings: the run.
        options: how much is recorded.
        report: told the stages.

    Raises:
        NonFiniteError: the reference itself gives NaN or infinity.
    """
    wanted = options or RecordingOptions()
    config = bundle.config
    coders = [name for name in config.components if name not in (*config.text_encoders, "unet")]
    report("reference: text encoders")
    with kept_open(runtime) as engine:
        prepared = prepare(bundle, engine, settings, make_sampler=wanted.make_sampler)
        cases = [*_recorded_cases(config.text_encoders, bundle, engine, prepared, (), report)]
    report("reference: denoising")
    recorder, executions = Recorder(), list[Execution]()
    with kept_open(runtime) as engine:
        for event in denoise(bundle, engine, prepared, on_open=executions.append):
            recorder(event)
        latents = (prepared.start.latents, *(event.latents for event in recorder.events))
        cases += _recorded_cases(["unet"], bundle, engine, prepared, latents, report)
    report("reference: decoding")
    steps = picture_steps(len(latents) - 1) if wanted.pictures else (len(latents) - 1,)
    with kept_open(runtime) as engine:
        images = decode(bundle, engine, {str(step): latents[step] for step in steps})
        cases += _recorded_cases(coders, bundle, engine, prepared, latents, report)
    (execution,) = executions
    return Recording(
        settings=settings,
        preconditions=find_preconditions(bundle, prepared),
        noise=prepared.start.noise,
        noise_stream=prepared.start.noise_stream,
        conditioning=prepared.conditioning,
        inpaint=prepared.start.inpaint,
        cases=tuple(cases),
        latents=latents,
        noise_preds=tuple(event.noise_pred for event in recorder.events),
        image=images[str(steps[-1])],
        pictures={step: pixels_from_image(images[str(step)]) for step in steps},
        precision=_precision(execution),
        execution=execution,
        fingerprint=take_fingerprint(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _precision(execution: Execution) -> Precision:
    """A reference says what it computes in."""
    precision: Precision = execution.precision  # type: ignore[assignment]  # PyTorch's are ours
    return precision


def _recorded_cases(
    components: Iterable[ComponentName],
    bundle: Bundle,
    runtime: Runtime,
    prepared: Prepared,
    latents: Sequence[Latents],
    report: StageReporter,
) -> Iterator[RecordedCase]:
    for component in components:
        report(f"reference: {component}")
        with open_session(runtime, bundle, component) as session:
            for case in _cases(component, bundle, prepared, latents):
                yield RecordedCase(
                    component=component,
                    name=case.name,
                    feed=case.feed,
                    outputs=session.run(case.feed),
                    has_halves=_has_halves(case, prepared),
                )


def _has_halves(case: Case, prepared: Prepared) -> bool:
    """Whether a feed is the run's own, with both sides of guidance."""
    told = prepared.conditioning.text_embeds
    return len(told) == 2 * len(prepared.start.latents) and case.feed.get("text_embeds") is told


def _cases(
    component: ComponentName, bundle: Bundle, prepared: Prepared, latents: Sequence[Latents]
) -> Iterator[Case]:
    config = bundle.config
    if component == "unet":
        yield from _unet_cases(config, prepared, latents)
        return
    input_ids = prompt_ids(bundle.folder, component)
    yield from component_cases(component, config, input_ids=input_ids)
    # At the run's size too: the only one of a graph of fixed shapes.
    if component == "vae_decoder":
        yield Case(name="the run's latents", feed={"latents": unscale_latents(latents[-1], config)})
    if component == "vae_encoder":
        picture = smooth_picture(prepared.height_px, prepared.width_px)
        yield Case(name="the run's size", feed={"image": picture})
    if component == "preview_decoder":
        for name, shown in (("first", latents[0]), ("last", latents[-1])):
            yield Case(name=f"the run's {name} latents", feed={"latents": shown})


def _unet_cases(
    config: SdxlConfig, prepared: Prepared, latents: Sequence[Latents]
) -> Iterator[Case]:
    """The reference's own path at the first, middle and last timestep, and another shape."""
    schedule, part = prepared.schedule, prepared.part
    last = part.num_steps - 1
    for index in sorted({0, last // 2, last}):
        position = part.first + index
        sample = unet_sample(latents[index], schedule, position, prepared.start.inpaint)
        timestep = float(schedule.timesteps[position])
        guided = len(prepared.conditioning.text_embeds) == 2 * len(sample)
        batch = np.concatenate([sample, sample]) if guided else sample
        yield Case(
            name=f"t={timestep:g} batch {len(batch)}",
            feed=_unet_feed(batch, timestep, prepared.conditioning),
        )
        if index == 0 and guided:
            conditional = split_halves(prepared.conditioning)[1]
            yield Case(
                name=f"t={timestep:g} batch {len(sample)}",
                feed=_unet_feed(sample, timestep, conditional),
            )
    # Odd and non-square: another path through the upsamplers, and swapped axes show.
    height, width = config.sample_size // 2 + 1, config.sample_size
    random = np.random.default_rng(0)
    feed = unet_feed(config, batch=1, height=height, width=width, random=random)
    first = np.array(schedule.timesteps[part.first], np.float32)
    yield Case(name=f"t={first:g} latents {height}x{width}", feed={**feed, "timestep": first})


def _unet_feed(sample: Array, timestep: float, conditioning: Conditioning) -> dict[str, Array]:
    return {
        "sample": sample,
        "timestep": np.array(timestep, np.float32),
        "encoder_hidden_states": conditioning.encoder_hidden_states,
        "text_embeds": conditioning.text_embeds,
        "time_ids": conditioning.time_ids,
    }
