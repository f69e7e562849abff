"""Sample from a bundle into a folder: pictures of chosen steps, latents, and how to repeat it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, final

from triptych.bundle.bundle import Bundle
from triptych.bundle.store import replace_folder
from triptych.models.distilled import distillation_warnings
from triptych.runtimes.base import Execution, Runtime
from triptych.runtimes.kept_open import kept_open
from triptych.sampling.callbacks import StepCallback
from triptych.sampling.decode import check_not_blank, pixels_from_image
from triptych.sampling.loop import Observer, StepEvent
from triptych.sampling.observers import PreviewKeeper, StepKeeper
from triptych.sampling.pipeline import (
    Encoder,
    Prepared,
    decode,
    decode_previews,
    denoise,
    encode,
    prepare,
)
from triptych.sampling.preview import preview_pixels
from triptych.sampling.prompt_encoding import EncodedPrompts
from triptych.types import Array, ImageFloats, ImagePixels, Latents
from triptych.workflows.diffusers_schedulers import read_any_sampler
from triptych.workflows.prompt_cache import PromptCache
from triptych.workflows.run_folder import (
    RUN_FILE,
    environment_record,
    stage_record,
    write_latents,
    write_pictures,
    write_previews,
)
from triptych.workflows.sample_request import PreviewDecoder, SampleRequest
from triptych.workflows.stages import Plan, Stage, handed_over, plan_run
from triptych.workflows.vae_tiles import in_tiles, record_tiling

Decoder: TypeAlias = Callable[[Bundle, Runtime, Mapping[str, Latents]], dict[str, ImageFloats]]
"""Latents to images, by name."""


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
    pixels: Mapping[int, Array]
    run: Mapping[str, object]
    warnings: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """A stage that has run.

    Attributes:
        stage: the model's part.
        prepared: its run.
        execution: what its U-Net ran on.
        last: its last step, with arrays of its own, counted over the whole run.
    """

    stage: Stage
    prepared: Prepared
    execution: Execution
    last: StepEvent

    @property
    def was_interrupted(self) -> bool:
        return self.last.index + 2 < self.stage.steps.stop


def sample(
    request: SampleRequest,
    *,
    on_step: Observer | None = None,
    callback_on_step_end: StepCallback | None = None,
    callback_on_step_end_tensor_inputs: Iterable[str] = ("latents",),
) -> SampleResult:
    """Run the sampler and write step_01.png ..., final.png, latents.safetensors and run.json.

    final.png has the pixels of the last saved step; a run that a callback interrupts ends with the
    latents so far. The output folder appears when everything in it is written.

    Args:
        request: what and where.
        on_step: shown every step, counted over the whole run; changes nothing.
        callback_on_step_end: diffusers' contract; called in the refiner's steps too, which it sees
            as a run of their own.
        callback_on_step_end_tensor_inputs: what the callback is given.

    Raises:
        UsageError: settings that cannot be, or an output folder that exists.
        BundleError: the bundle is incomplete or corrupt.
        NonFiniteError: a component gave NaN or infinity.
        BlankPictureError: a picture is of one colour.
        BackendError: the engine or device is missing.
    """
    planned = plan_run(request)
    with (
        _kept_loaded(planned, wanted=request.keep_loaded) as untiled,
        replace_folder(request.output, overwrite=request.overwrite, marker=RUN_FILE) as folder,
    ):
        plan = untiled if request.vae_tile_px is None else in_tiles(untiled, request.vae_tile_px)
        if request.verify:
            for stage in plan.stages:
                stage.bundle.check_files()
        keeper = StepKeeper(plan.save_steps)
        previews = PreviewKeeper(of=request.preview_of)
        observers: list[Observer] = [keeper]
        observers += [previews] if request.previews is not None else []
        observers += [on_step] if on_step is not None else []
        names = tuple(callback_on_step_end_tensor_inputs)
        encoder = _encoder(request)
        done = list(_run_stages(plan, observers, callback_on_step_end, names, encoder=encoder))
        last = done[-1].last
        saved = keeper.latents
        if done[-1].was_interrupted:
            saved = {**saved, last.index + 1: last.latents}
        images = _decoded(done, saved)
        pixels = {step: plan.finished(_checked_pixels(image)) for step, image in images.items()}
        files = write_pictures(pixels, folder)
        if request.previews is not None:
            write_previews(_previews(done, previews.latents, request.previews), folder)
        write_latents(done[0].prepared, saved, last.latents, folder)
        run = _run_record(done, save_steps=sorted(saved))
        if request.vae_tile_px is not None:
            step = max(images)
            tiling = record_tiling(
                untiled,
                request.vae_tile_px,
                image=images[step],
                latents=saved[step],
                compared=request.compare_untiled,
            )
            run["vae_tiling"] = tiling.to_json()
        (folder / RUN_FILE).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    return SampleResult(
        output=request.output,
        pictures={
            step: tuple(request.output / name for name in names) for step, names in files.items()
        },
        pixels=pixels,
        run=run,
        warnings=(
            *truncation_warnings(done[0].prepared.encoded),
            *_settings_warnings(plan.stages[0]),
        ),
    )


@contextmanager
def _kept_loaded(plan: Plan, *, wanted: bool) -> Iterator[Plan]:
    """The plan, on runtimes that close nothing until the end where that is wanted."""
    with ExitStack() as stack:
        if wanted:
            runtimes = dict.fromkeys(stage.runtime for stage in plan.stages)
            kept = {runtime: stack.enter_context(kept_open(runtime)) for runtime in runtimes}
            stages = (replace(stage, runtime=kept[stage.runtime]) for stage in plan.stages)
            plan = replace(plan, stages=tuple(stages))
        yield plan


def _encoder(request: SampleRequest) -> Encoder:
    if request.prompt_cache is None:
        return encode
    return PromptCache(folder=request.prompt_cache, settings=request.runtime_settings).encode


def _run_stages(
    plan: Plan,
    observers: Iterable[Observer],
    callback: StepCallback | None,
    names: tuple[str, ...],
    *,
    encoder: Encoder,
) -> Iterator[_Done]:
    """Run each stage from where the one before has stopped; none after an interrupted one."""
    before: StepEvent | None = None
    for stage in plan.stages:
        settings = stage.settings if before is None else handed_over(stage, before)
        prepared = prepare(
            stage.bundle, stage.runtime, settings, make_sampler=read_any_sampler, encoder=encoder
        )
        executions: list[Execution] = []
        for event in denoise(
            stage.bundle,
            stage.runtime,
            prepared,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=names,
            on_open=executions.append,
        ):
            before = replace(
                event,
                index=event.index + stage.steps.start - 1,
                num_inference_steps=plan.num_steps,
            )
            for observer in observers:
                observer(before)
        assert before is not None  # noqa: S101  a part of a schedule has a step
        before = replace(before, latents=before.latents.copy())
        done = _Done(stage=stage, prepared=prepared, execution=executions[0], last=before)
        yield done
        if done.was_interrupted:
            return


def _decoded(
    done: Iterable[_Done], latents: Mapping[int, Latents], *, by: Decoder = decode
) -> dict[int, ImageFloats]:
    """Latents of some steps as images, each by a decoder of the model whose step it was."""
    images: dict[int, ImageFloats] = {}
    for one in done:
        mine = {str(step): latents[step] for step in latents if step in one.stage.steps}
        decoded = by(one.stage.bundle, one.stage.runtime, mine) if mine else {}
        images |= {int(step): image for step, image in decoded.items()}
    return dict(sorted(images.items()))


def _previews(
    done: Iterable[_Done], latents: Mapping[int, Latents], decoder: PreviewDecoder
) -> dict[int, ImagePixels]:
    if decoder == "linear":
        return {step: preview_pixels(kept) for step, kept in latents.items()}
    by = decode if decoder == "vae" else decode_previews
    return {
        step: pixels_from_image(image) for step, image in _decoded(done, latents, by=by).items()
    }


def _checked_pixels(image: ImageFloats) -> ImagePixels:
    check_not_blank(image)
    return pixels_from_image(image)


def _run_record(done: list[_Done], *, save_steps: list[int]) -> dict[str, object]:
    """The first model's part, with the refiner's in it."""
    base, *refiner = (
        stage_record(
            one.stage.bundle,
            one.stage.runtime,
            one.prepared,
            execution=one.execution,
            last=one.last.latents,
        )
        for one in done
    )
    return {
        **environment_record(),
        **base,
        "refiner": refiner[0] if refiner else None,
        "save_steps": save_steps,
        "interrupted_after": done[-1].last.index + 1 if done[-1].was_interrupted else None,
        "final_latents_sha256": (refiner or [base])[-1]["final_latents_sha256"],
    }


def _settings_warnings(stage: Stage) -> Iterator[str]:
    """One sentence for each setting that does not suit the model."""
    settings = stage.settings
    return distillation_warnings(
        stage.bundle.folder,
        guidance_scale=max(settings.guidance_schedule or (settings.guidance_scale,)),
        num_inference_steps=settings.num_inference_steps,
    )


def truncation_warnings(encoded: EncodedPrompts) -> Iterator[str]:
    """One sentence for each prompt that was longer than a text encoder takes."""
    for name, counts in encoded.num_truncated.items():
        for row, count in enumerate(counts):
            if count:
                yield f"{name}: prompt {row} is {count} tokens too long; they were cut off"
