"""Export a checkpoint: in processes of their own, verified, then renamed into place as a whole."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from triptych.bundle.manifest import SCHEMA_VERSION, ComponentRecord, Manifest, write_manifest
from triptych.bundle.store import record_files, replace_folder
from triptych.errors import TriptychError, UsageError
from triptych.exporters import exporter_names, make_exporter
from triptych.exporters.base import CoreMlSettings, ExportSettings
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.composition import Source
from triptych.models.hub import model_name
from triptych.models.precisions import is_compressed
from triptych.parity.recording import StageReporter
from triptych.types import ComponentName, FormatName
from triptych.workflows.calibration import num_feeds
from triptych.workflows.export_components import (
    ExportProgress,
    choose_num_jobs,
    export_components,
)
from triptych.workflows.export_estimate import ExportEstimate, check_disk, estimate_export
from triptych.workflows.export_workers import ExportWorkers
from triptych.workflows.measured_parity import MEASURE_STEPS, measure_parity
from triptych.workflows.optimum_export import (
    DISTRIBUTIONS,
    ExportEngine,
    check_optimum,
    run_optimum,
)
from triptych.workflows.unfinished_export import (
    drop_finished,
    export_key,
    keep_finished,
    take_finished,
)

_ASSETS = ("scheduler", "tokenizer", "tokenizer_2")
_TOOLCHAIN = (
    "triptych", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino",
    "openvino-tokenizers", "nncf", "coremltools", "numpy"
)  # fmt: skip


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        checkpoint: a folder in diffusers layout.
        output: gets one folder for each format, named after it.
        formats: which formats.
        components: which components; empty means all the model has.
        settings: precision, and what single formats have besides.
        variant: the checkpoint's weight variant, such as "fp16".
        preview_decoder: the folder of a preview decoder that is not in the checkpoint's own
            preview_decoder/.
        overwrite: replace bundles that exist, each as a whole.
        resume: go on from what an export of the same that failed has finished.
        num_jobs: components exported at once, each in a process of its own; None takes one of a
            model with a large component, else two.
        engine: who converts: triptych's exporters, or optimum's, which are then verified alike.
        measure_steps: steps of the run that tells what compression costs; 0 leaves it out.
    """

    checkpoint: Path
    output: Path
    formats: Sequence[FormatName]
    components: Sequence[ComponentName] = ()
    settings: ExportSettings = field(default_factory=ExportSettings)
    variant: str | None = None
    preview_decoder: Path | None = None
    overwrite: bool = False
    resume: bool = False
    num_jobs: int | None = None
    engine: ExportEngine = "triptych"
    measure_steps: int = MEASURE_STEPS


def export_bundles(
    request: ExportRequest, *, progress: ExportProgress | None = None
) -> dict[FormatName, Path]:
    """Export a checkpoint to one bundle for each format.

    Each bundle is written beside its place, every component is run against the PyTorch one it
    came from, and only then is it renamed. A failure or a kill leaves no half bundle. After a
    failure the components that were finished are kept for an export that resumes.

    Returns:
        The bundle's folder for each format.

    Raises:
        UsageError: an unknown format or component, or a bundle that exists already.
        CheckpointError: the checkpoint is not whole, or not SDXL.
        VerificationError: an exported component disagrees with PyTorch, or a run of a compressed
            bundle gives NaN.
        OutputError: the disk cannot hold it.
        MissingDependencyError: the export extra is not installed.
    """
    checkpoint = open_checkpoint(
        request.checkpoint, variant=request.variant, preview_decoder=request.preview_decoder
    )
    components = _choose_components(request, checkpoint)
    if not request.formats:
        raise UsageError(f"formats: got none, want at least one of {', '.join(exporter_names())}.")
    _check_settings(request, checkpoint)
    _check_used(request, components)
    check_disk(_estimate(request, checkpoint, components), request.output)
    # Threads of one process for each core would wait for those of the others.
    num_jobs = choose_num_jobs(request.num_jobs, checkpoint, components)
    num_threads = max(1, (os.cpu_count() or 1) // num_jobs)
    with ExportWorkers(num_threads=num_threads) as workers:
        return {
            name: _export_bundle(
                checkpoint,
                request,
                workers,
                to=name,
                components=components,
                num_jobs=num_jobs,
                progress=progress,
            )
            for name in dict.fromkeys(request.formats)
        }


def _check_settings(request: ExportRequest, checkpoint: Checkpoint) -> None:
    """Refuse what an exporter does not have."""
    if request.engine == "optimum":
        others = {
            "--component": bool(request.components),
            "--resume": request.resume,
            "--weights-in-place": request.settings.weights_in_place,
            "--variant": request.variant is not None,
            "a preview decoder": checkpoint.preview_decoder is not None,
        }
        check_optimum(request.formats, request.settings.precision, others=others)
    for name in request.formats:
        make_exporter(name, request.settings)


def estimate_request(request: ExportRequest) -> ExportEstimate:
    """What an export will take of disk, memory and time, about. No weight is read.

    Raises:
        UsageError: an unknown format or component.
        CheckpointError: the checkpoint is not whole, or not SDXL.
    """
    checkpoint = open_checkpoint(
        request.checkpoint, variant=request.variant, preview_decoder=request.preview_decoder
    )
    return _estimate(request, checkpoint, _choose_components(request, checkpoint))


def _estimate(
    request: ExportRequest, checkpoint: Checkpoint, components: Sequence[ComponentName]
) -> ExportEstimate:
    return estimate_export(
        checkpoint,
        components,
        formats=request.formats,
        settings=request.settings,
        measure_steps=request.measure_steps,
    )


def _check_used(request: ExportRequest, components: Sequence[ComponentName]) -> None:
    """Refuse what no format or component takes, rather than leave it unused."""
    settings = request.settings
    if settings.calibration is not None and settings.precision != "hybrid":
        raise UsageError(
            f"calibration: got prompts with precision {settings.precision!r}, want hybrid: no "
            "other looks at activations. Leave --calibrate out."
        )
    if settings.weights_in_place and set(request.formats) != {"onnx"}:
        raise UsageError(
            f"formats: got {', '.join(request.formats)} with weights in place, want onnx alone: "
            "others have files of their own kind. Leave --weights-in-place out."
        )
    plain = replace(settings, height_px=None, width_px=None, coreml=CoreMlSettings())
    if "coreml" not in request.formats and request.settings != plain:
        raise UsageError(
            f"formats: got {', '.join(request.formats)} with settings that only coreml has "
            "(a size, or a --coreml option), want --to coreml, or neither. "
            "ONNX and OpenVINO graphs make pictures of every size."
        )
    if request.preview_decoder is not None and "preview_decoder" not in components:
        raise UsageError(
            f"components: got {', '.join(components)} with a preview decoder, want "
            "--component preview_decoder too, or no --preview-decoder."
        )


def _choose_components(request: ExportRequest, checkpoint: Checkpoint) -> tuple[ComponentName, ...]:
    available = checkpoint.config.components
    unknown = [name for name in request.components if name not in available]
    if unknown:
        raise UsageError(
            f"components: got {', '.join(unknown)}, this {checkpoint.config.kind} model has "
            f"{', '.join(available)}."
        )
    chosen = request.components or available
    return tuple(name for name in available if name in chosen)


def _export_bundle(
    checkpoint: Checkpoint,
    request: ExportRequest,
    workers: ExportWorkers,
    *,
    to: FormatName,
    components: Sequence[ComponentName],
    num_jobs: int,
    progress: ExportProgress | None,
) -> Path:
    target = request.output / to
    key = export_key(checkpoint, components, request.settings)
    with replace_folder(target, overwrite=request.overwrite, marker="model_index.json") as folder:
        if request.engine == "optimum":
            if progress is not None:
                progress(to=to, component=components[0], stage="optimum", fraction=0.0)
            run_optimum(checkpoint, folder, to=to, precision=request.settings.precision)
        else:
            _copy_assets(checkpoint, folder)
            make_exporter(to, request.settings).export_assets(folder)
        found = take_finished(target, folder, key=key) if request.resume else ()
        finished = {record.name: record for record in found}
        try:
            export_components(
                checkpoint,
                [name for name in components if name not in finished],
                workers,
                to=to,
                settings=request.settings,
                folder=folder,
                num_jobs=num_jobs,
                engine=request.engine,
                finished=lambda record: finished.update({record.name: record}),
                progress=progress,
            )
        except TriptychError:
            if request.engine == "triptych":
                keep_finished(folder, target, finished.values(), key=key)
            raise
        records = [finished[name] for name in components]
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            format=to,
            kind=checkpoint.config.kind,
            precision=request.settings.precision,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            toolchain=_toolchain(DISTRIBUTIONS if request.engine == "optimum" else ()),
            components=tuple(records),
            files=record_files(folder),
            settings=_format_settings(request.settings, to),
            sources=_sources(checkpoint, records),
        )
        write_manifest(manifest, folder)
        if request.measure_steps and any(is_compressed(record.precision) for record in records):
            parity = measure_parity(
                folder,
                checkpoint,
                engine_name=make_exporter(to, request.settings).verified_on,
                num_inference_steps=request.measure_steps,
                report=_measuring(progress, to=to, component=components[-1]),
            )
            write_manifest(replace(manifest, parity=parity), folder)
    drop_finished(target)
    return target


def _measuring(
    progress: ExportProgress | None, *, to: FormatName, component: ComponentName
) -> StageReporter:
    def report(stage: str) -> None:
        if progress is not None:
            progress(to=to, component=component, stage=f"measuring, {stage}", fraction=1.0)

    return report


def _copy_assets(checkpoint: Checkpoint, folder: Path) -> None:
    """Everything besides the networks that sampling needs, so that a bundle stands alone.

    All configs, also those of components that are not exported: the model's sizes are in them.
    """
    shutil.copy(checkpoint.folder / "model_index.json", folder)
    for component in checkpoint.config.components:
        (folder / component).mkdir()
        shutil.copy(checkpoint.component_folder(component) / "config.json", folder / component)
    for name in _ASSETS:
        source = checkpoint.folder / name
        if source.is_dir():
            shutil.copytree(source, folder / name)


def _format_settings(settings: ExportSettings, to: FormatName) -> dict[str, int | str]:
    """The settings that only this format has, for the manifest."""
    given = asdict(settings.coreml) if to == "coreml" else {}
    if settings.calibration is not None:
        given = {
            "calibration_prompts": len(settings.calibration.prompts),
            "calibration_steps": settings.calibration.num_inference_steps,
            "calibration_feeds": num_feeds(settings.calibration),
        }
    return {name: value for name, value in given.items() if value is not None}


def _sources(checkpoint: Checkpoint, records: Sequence[ComponentRecord]) -> tuple[Source, ...]:
    """What the checkpoint was composed of; a folder that was not is its own only source."""
    if checkpoint.composition is not None:
        return checkpoint.composition.sources
    hashes = {name: sha for record in records for name, sha in record.source_sha256.items()}
    return (Source(role="checkpoint", name=model_name(checkpoint.folder), sha256=hashes),)


def _toolchain(more: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version(), "os": platform.system().lower()}
    for name in (*_TOOLCHAIN, *more):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
