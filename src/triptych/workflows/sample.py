"""Sample from a bundle into a folder: pictures of chosen steps, latents, and how to repeat it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.store import replace_folder
from triptych.errors import UsageError
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.base import Execution, Runtime, RuntimeSettings
from triptych.sampling.callbacks import StepCallback
from triptych.sampling.conditioning import EncodedPrompts
from triptych.sampling.decode import pixels_from_image
from triptych.sampling.image_start import ImageStart
from triptych.sampling.loop import Observer, StepEvent
from triptych.sampling.observers import StepKeeper, check_save_steps, observe
from triptych.sampling.pipeline import decode, denoise, prepare
from triptych.sampling.settings import Settings, chosen_part
from triptych.types import ImagePixels, Latents
from triptych.workflows.diffusers_schedulers import read_any_sampler
from triptych.workflows.image_file import read_image
from triptych.workflows.run_folder import (
    RUN_FILE,
    PreviewWriter,
    run_record,
    write_latents,
    write_pictures,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What to sample, and where to put it.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        output: a folder to make.
        settings: what to draw.
        image: a file to start from; its size is the picture's, unless the bundle makes only one.
        strength: how much of it is made anew, 0 to 1.
        save_steps: steps to save pictures of; empty saves the last.
        previews: write a linear preview of every step as well.
        runtime: the engine; None takes the one that reads the bundle's format.
        runtime_settings: device, precision, threads.
        variant: the weight variant, for a checkpoint.
        verify: compare every file's hash with the manifest first.
        overwrite: replace an existing output folder.
    """

    bundle: Path
    output: Path
    settings: Settings
    image: Path | None = None
    strength: float = 0.3
    save_steps: Sequence[int] = ()
    previews: bool = False
    runtime: str | None = None
    runtime_settings: RuntimeSettings
    variant: str | None = None
    verify: bool = True
    overwrite: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """What a run left.

    Attributes:
        output: the folder.
        pictures: files by step, several for several pictures.
        pixels: the same pictures as arrays, by step.
        run: what run.json holds.
        warnings: what the user should know, such as prompts that were cut.
    """

    output: Path
    pictures: Mapping[int, tuple[Path, ...]]
    pixels: Mapping[int, ImagePixels]
    run: Mapping[str, object]
    warnings: tuple[str, ...]


def sample(
    request: SampleRequest,
    *,
    observers: Iterable[Observer] = (),
    callback_on_step_end: StepCallback | None = None,
    callback_on_step_end_tensor_inputs: Iterable[str] = ("latents",),
) -> SampleResult:
    """Run the sampler and write step_01.png ..., final.png, latents.safetensors and run.json.

    final.png has the pixels of the last saved step. The output folder appears when everything in
    it is written.

    Args:
        request: what and where.
        observers: shown every step.
        callback_on_step_end: diffusers' contract.
        callback_on_step_end_tensor_inputs: what the callback is given.

    Raises:
        UsageError: settings that cannot be, or an output folder that exists.
        BundleError: the bundle is incomplete or corrupt.
        NonFiniteError: a component gave NaN or infinity.
        BackendError: the engine or device is missing.
    """
    bundle = open_bundle(request.bundle, variant=request.variant)
    settings = _with_image(request, bundle)
    steps = _save_steps(bundle, settings, request.save_steps)
    runtime = choose_runtime(bundle, request.runtime, request.runtime_settings)
    with replace_folder(request.output, overwrite=request.overwrite, marker=RUN_FILE) as folder:
        if request.verify:
            bundle.check_files()
        prepared = prepare(bundle, runtime, settings, make_sampler=read_any_sampler)
        keeper = StepKeeper(steps)
        watchers: list[Observer] = [keeper, *observers]
        if request.previews:
            watchers.append(PreviewWriter(folder))
        ran_on: list[Execution] = []
        events = denoise(
            bundle,
            runtime,
            prepared,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            on_open=ran_on.append,
        )
        last = _last(observe(events, watchers))
        images = decode(bundle, runtime, {str(step): x for step, x in keeper.latents.items()})
        pixels = {int(step): pixels_from_image(image) for step, image in images.items()}
        names = write_pictures(pixels, folder)
        write_latents(prepared, keeper.latents, last, folder)
        run = run_record(bundle, runtime, prepared, execution=ran_on[0], steps=steps, last=last)
        (folder / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return SampleResult(
        output=request.output,
        pictures={
            step: tuple(request.output / name for name in files) for step, files in names.items()
        },
        pixels=pixels,
        run=run,
        warnings=tuple(truncation_warnings(prepared.encoded)),
    )


def _with_image(request: SampleRequest, bundle: Bundle) -> Settings:
    """The settings, starting from the image that was asked for.

    Raises:
        UsageError: the file is no picture.
    """
    if request.image is None:
        return request.settings
    settings = request.settings
    asked = (settings.height_px, settings.width_px)
    size_px = bundle.built_size_px
    if asked != (None, None):
        if None in asked:
            raise UsageError("height_px, width_px: got one with an image, want both or neither.")
        size_px = (asked[0] or 0, asked[1] or 0)
    image = read_image(request.image, size_px=size_px, scale=bundle.config.vae_scale_factor)
    start = ImageStart(image=image, strength=request.strength)
    return replace(settings, start=start, height_px=None, width_px=None)


def _save_steps(bundle: Bundle, settings: Settings, asked: Sequence[int]) -> tuple[int, ...]:
    """The steps to save, checked before anything runs.

    Some schedulers evaluate the U-Net more often than they are asked for steps, and a picture to
    start from leaves fewer: the last step is the run's.
    """
    sampler = read_any_sampler(
        bundle.folder / "scheduler" / "scheduler_config.json",
        settings.scheduler,
        num_inference_steps=settings.num_inference_steps,
    )
    total = chosen_part(settings, sampler.schedule).num_steps
    return check_save_steps(asked or (total,), num_inference_steps=total)


def choose_runtime(bundle: Bundle, name: str | None, settings: RuntimeSettings) -> Runtime:
    """The engine that was asked for, or the first that reads the bundle's format.

    Raises:
        UsageError: no such engine, or it does not read this format.
    """
    able = runtimes_for(bundle.format)
    if name is not None and make_runtime(name).name not in able:
        raise UsageError(
            f"runtime: got {name!r} for a bundle in {bundle.format} format, "
            f"want {' or '.join(able)}."
        )
    return make_runtime(name or able[0], settings)


def truncation_warnings(encoded: EncodedPrompts) -> Iterator[str]:
    """One sentence for each prompt that was longer than a text encoder takes."""
    for name, counts in encoded.num_truncated.items():
        for row, count in enumerate(counts):
            if count:
                yield f"{name}: prompt {row} is {count} tokens too long; they were cut off"


def _last(events: Iterable[StepEvent]) -> Latents:
    latents: Latents | None = None
    for event in events:
        latents = event.latents
    if latents is None:
        raise UsageError("run: got no steps, want at least one.")
    return latents.copy()
