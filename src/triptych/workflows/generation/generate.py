"""A dataset from prompts: pictures of chosen steps, made once, taken up again wherever it ended."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias, final

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.layouts import MANIFEST_NAME
from triptych.bundle.store import file_sha256
from triptych.errors import UsageError
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings, picture_size
from triptych.workflows.generation.clean import remove
from triptych.workflows.generation.local_executor import (
    PaintReporter,
    paint_here,
    paint_in_processes,
)
from triptych.workflows.generation.painter import PaintJob, SavedBy
from triptych.workflows.generation.pictures import DEFAULT_QUALITY, check_quality
from triptych.workflows.generation.plan import Plan, PlanRequest, plan_dataset
from triptych.workflows.generation.queries import read_queries
from triptych.workflows.generation.ray_executor import paint_on_ray
from triptych.workflows.generation.settings_lock import (
    check_settings_lock,
    lock_settings,
    settings_fingerprint,
)
from triptych.workflows.generation.writer import WriterSettings
from triptych.workflows.runtime_choice import choose_runtime
from triptych.workflows.stages import count_steps

ExecutorName: TypeAlias = Literal["local", "ray"]
"""Where the work is done."""

NO_PROMPTS = Prompts(prompt=("",))
"""Stands in the settings of a dataset, whose prompts are the units'."""

_NOT_OF_A_DATASET = (
    "num_images_per_prompt",
    "noise",
    "noise_stream",
    "start",
    "denoising_start",
    "denoising_end",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Which dataset, of what, with what.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        prompts: a file of ids and prompts.
        output: the dataset's folder.
        pictures: which pictures, and which part of them.
        settings: of every run; prompts, seeds and steps come from elsewhere.
        negative_prompt: for every run; None where there is none.
        id_key: where ids are in the file; None looks for them.
        prompts_key: where prompts are; None looks for them.
        quality: of jpg, 1 to 100.
        saved_by: what makes pictures of latents.
        num_workers: processes, or actors, of one model each.
        executor: local: processes of this machine. ray: actors of a Ray cluster.
        runtime: the engine; None takes the one that reads the bundle's format.
        runtime_settings: device, precision, threads.
        variant: the weight variant, for a checkpoint.
        prompt_cache: a folder where encoded prompts are kept and looked for; None keeps none.
        keep_loaded: keep the text encoders open between prompts, too.
        verify: compare the bundle's hashes with its manifest first.
        overwrite: make everything anew that was made with other settings.
    """

    bundle: Path
    prompts: Path
    output: Path
    pictures: PlanRequest = field(default_factory=PlanRequest)
    settings: Settings = field(default_factory=lambda: Settings(prompts=NO_PROMPTS))
    negative_prompt: str | None = None
    id_key: str | None = None
    prompts_key: str | None = None
    quality: int = DEFAULT_QUALITY
    saved_by: SavedBy = "vae"
    num_workers: int = 1
    executor: ExecutorName = "local"
    runtime: str | None = None
    runtime_settings: RuntimeSettings = field(default_factory=RuntimeSettings)
    variant: str | None = None
    prompt_cache: Path | None = None
    keep_loaded: bool = True
    verify: bool = True
    overwrite: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A dataset that is ready to be made, or gone on with.

    Attributes:
        request: what was asked for.
        plan: what is to do.
        job: what every worker needs.
        locked: the settings that the dataset is fixed to.
    """

    request: GenerateRequest
    plan: Plan
    job: PaintJob
    locked: Mapping[str, object]


def plan_generation(request: GenerateRequest) -> Generation:
    """Read everything, check everything, write nothing.

    Raises:
        UsageError: settings that cannot be, or others than the dataset was begun with.
        BrokenInputError: the prompts, a ledger or the bundle cannot be read.
        ScheduleError: the scheduler config cannot be followed.
        BackendError: the engine is missing.
    """
    if request.num_workers < 1:
        raise UsageError(f"workers: got {request.num_workers}, want at least 1.")
    check_quality(request.quality)
    queries = read_queries(request.prompts, id_key=request.id_key, prompts_key=request.prompts_key)
    bundle = open_bundle(request.bundle, variant=request.variant)
    runtime = choose_runtime(bundle, request.runtime, request.runtime_settings)
    settings = replace(
        request.settings,
        prompts=NO_PROMPTS,
        num_inference_steps=request.pictures.max_inference_steps,
    )
    _check_settings(bundle, settings)
    locked = _locked_settings(request, bundle, settings, runtime_name=runtime.name)
    if not request.overwrite:
        check_settings_lock(request.output, locked)
    fingerprint = settings_fingerprint(locked)
    plan = plan_dataset(queries, request.pictures, output=request.output, fingerprint=fingerprint)
    job = PaintJob(
        bundle=request.bundle,
        variant=request.variant,
        runtime=runtime.name,
        runtime_settings=request.runtime_settings,
        settings=settings,
        negative_prompt=request.negative_prompt,
        output=request.output,
        writing=WriterSettings(
            fingerprint=fingerprint,
            runtime=runtime.name,
            picture_format=request.pictures.picture_format,
            quality=request.quality,
        ),
        saved_by=request.saved_by,
        shard=request.pictures.shard,
        prompt_cache=request.prompt_cache,
        keep_loaded=request.keep_loaded,
    )
    return Generation(request=request, plan=plan, job=job, locked=locked)


def generate(generation: Generation, *, report: PaintReporter) -> None:
    """Make what is to do. Ended at any moment, it is taken up again by the same request.

    Raises:
        UsageError: another run has begun the dataset with other settings meanwhile.
        BundleError: the bundle is incomplete or corrupt.
        NonFiniteError: a component gave NaN or infinity.
        BlankPictureError: a picture is of one colour.
        BackendError: a worker ended without a word.
        OutputError: the disk is full, or may not be written to.
    """
    request, work = generation.request, generation.plan.work
    if request.verify:
        open_bundle(request.bundle, variant=request.variant).check_files()
    lock_settings(request.output, generation.locked, overwrite=request.overwrite)
    remove(generation.plan.stale_caches)
    if request.executor == "ray":
        paint_on_ray(generation.job, work, num_workers=request.num_workers, report=report)
    elif request.num_workers == 1 or len(work) < 2:
        paint_here(generation.job, work, report=report)
    else:
        paint_in_processes(generation.job, work, num_workers=request.num_workers, report=report)


def _check_settings(bundle: Bundle, settings: Settings) -> None:
    """Refuse settings that no run could have, and those that a dataset has in another way.

    Raises:
        UsageError: as said, and schedulers of more evaluations than steps.
    """
    plain = Settings(prompts=NO_PROMPTS)
    for name in _NOT_OF_A_DATASET:
        if getattr(settings, name) is not getattr(plain, name):
            raise UsageError(
                f"settings: got {name}, want none: a picture of a dataset is one run from noise, "
                "and which there are follows from the prompts."
            )
    count = count_steps(bundle, settings)
    if count != settings.num_inference_steps:
        raise UsageError(
            f"scheduler: got one that takes {count} evaluations for "
            f"{settings.num_inference_steps} steps, want one for each: pictures are named by "
            "their step."
        )


def _locked_settings(
    request: GenerateRequest, bundle: Bundle, settings: Settings, *, runtime_name: str
) -> dict[str, object]:
    """What makes the pictures what they are, whichever of them are made, and wherever."""
    height_px, width_px = picture_size(bundle, settings)
    config = bundle.folder / "scheduler" / "scheduler_config.json"
    return {
        "model_sha256": _model_sha256(bundle),
        "runtime": runtime_name,
        "device": request.runtime_settings.device,
        "precision": request.runtime_settings.precision,
        "scheduler_sha256": file_sha256(config),
        "scheduler": asdict(settings.scheduler),
        "max_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_mode": settings.guidance_mode,
        "guidance_rescale": settings.guidance_rescale,
        "guidance_interval": settings.guidance_interval,
        "guidance_schedule": settings.guidance_schedule,
        "micro_conditioning": asdict(settings.sizes),
        "height_px": height_px,
        "width_px": width_px,
        "negative_prompt": request.negative_prompt,
        "seed_rule": request.pictures.seed_rule,
        "base_seed": request.pictures.base_seed,
        "images_per_prompt": request.pictures.images_per_prompt,
        "format": request.pictures.picture_format,
        "quality": request.quality if request.pictures.picture_format == "jpg" else None,
        "saved_by": request.saved_by,
    }


def _model_sha256(bundle: Bundle) -> str:
    """A bundle's manifest, which has the hash of every file; of others their files' sizes."""
    manifest = bundle.folder / MANIFEST_NAME
    if manifest.is_file():
        return file_sha256(manifest)
    sizes = {
        path.relative_to(bundle.folder).as_posix(): path.stat().st_size
        for path in sorted(bundle.folder.rglob("*"))
        if path.is_file()
    }
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
