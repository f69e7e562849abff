"""The reference's side of a check: what was fed, what came out, and the path of one run.

Recording and checking are apart, so that the reference runs once, here or on another machine, and
its networks are gone before a candidate's are opened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias, final

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.models.feeds import Case, component_cases, smooth_picture, unet_feed
from triptych.models.prompts import PROMPTS, prompt_ids
from triptych.models.sdxl import SdxlConfig
from triptych.parity.fingerprint import Fingerprint, take_fingerprint
from triptych.parity.floors import Floor
from triptych.parity.preconditions import Fact, find_preconditions
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.conditioning import Conditioning
from triptych.sampling.decode import pixels_from_image, unscale_latents
from triptych.sampling.guidance import split_halves
from triptych.sampling.image_start import ImageStart
from triptych.sampling.inpaint import Inpaint, unet_sample
from triptych.sampling.noise import NoiseStream, gaussian_noise
from triptych.sampling.observers import Recorder
from triptych.sampling.pipeline import Prepared, decode, denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.schedulers import SamplerMaker, read_sampler
from triptych.sampling.settings import Settings
from triptych.types import (
    Array,
    ComponentName,
    ImageFloats,
    ImagePixels,
    Latents,
    NoisePred,
    Precision,
    TensorMap,
)

StageReporter: TypeAlias = Callable[[str], None]
"""Told what a recording or a check is doing now, in words for people."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCase:
    """One run of one component.

    Attributes:
        component: which.
        name: what is special about the feed.
        feed: its inputs.
        outputs: what the reference gave.
        has_halves: whether it is a guidance batch, the unconditional half first.
    """

    component: ComponentName
    name: str
    feed: TensorMap
    outputs: TensorMap
    has_halves: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything a candidate is compared with. Values only: no network, no file, no weights.

    Attributes:
        settings: what was asked for.
        preconditions: what was really used, to be found equal before numbers are compared.
        noise: the unit noise that the run started from.
        noise_stream: where the generators stood after it.
        conditioning: what the U-Net was told.
        inpaint: what a run with a mask keeps to; None for others.
        cases: component runs.
        latents: before each step and after the last: num_inference_steps + 1 of them.
        noise_preds: guided predictions, one a step.
        image: the run's picture as floats.
        pictures: of some steps and of the last, for people.
        precision: the arithmetic of the reference.
        execution: what its U-Net ran on.
        fingerprint: of the machine.
        created: ISO 8601, UTC.
        floors: what lower precisions cost in PyTorch, where that was measured.
    """

    settings: Settings
    preconditions: Mapping[str, Fact]
    noise: Latents
    noise_stream: NoiseStream
    conditioning: Conditioning
    inpaint: Inpaint | None
    cases: tuple[RecordedCase, ...]
    latents: tuple[Latents, ...]
    noise_preds: tuple[NoisePred, ...]
    image: ImageFloats
    pictures: Mapping[int, ImagePixels]
    precision: Precision
    execution: Execution
    fingerprint: Fingerprint
    created: str
    floors: tuple[Floor, ...] = ()

    @property
    def candidate_settings(self) -> Settings:
        """The same run for a candidate, from the noise itself: a seed is only a promise.

        Where a picture is encoded first, generators draw for that too, and the seeds are kept.
        """
        start = self.settings.start
        if start is not None and start.image is not None:
            return self.settings
        return replace(self.settings, noise=self.noise, noise_stream=self.noise_stream)


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
    """Run the reference once: the trajectory, then every component on realistic feeds.

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
    report("reference: text encoders")
    prepared = prepare(bundle, runtime, settings, make_sampler=wanted.make_sampler)
    report("reference: denoising")
    recorder, executions = Recorder(), list[Execution]()
    for event in denoise(bundle, runtime, prepared, on_open=executions.append):
        recorder(event)
    latents = (prepared.start.latents, *(event.latents for event in recorder.events))
    report("reference: decoding")
    steps = picture_steps(len(latents) - 1) if wanted.pictures else (len(latents) - 1,)
    images = decode(bundle, runtime, {str(step): latents[step] for step in steps})
    cases = tuple(_recorded_cases(bundle, runtime, prepared, latents, report))
    (execution,) = executions
    return Recording(
        settings=settings,
        preconditions=find_preconditions(bundle, prepared),
        noise=prepared.start.noise,
        noise_stream=prepared.start.noise_stream,
        conditioning=prepared.conditioning,
        inpaint=prepared.start.inpaint,
        cases=cases,
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
    bundle: Bundle,
    runtime: Runtime,
    prepared: Prepared,
    latents: Sequence[Latents],
    report: StageReporter,
) -> Iterator[RecordedCase]:
    for component in bundle.config.components:
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
