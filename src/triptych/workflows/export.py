"""Export a checkpoint: in processes of their own, verified, then renamed into place as a whole."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from triptych.bundle.manifest import SCHEMA_VERSION, ComponentRecord, Manifest, write_manifest
from triptych.bundle.store import record_files, replace_folder
from triptych.errors import UsageError
from triptych.exporters import exporter_names, make_exporter
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.precisions import is_compressed
from triptych.parity.recording import StageReporter
from triptych.types import ComponentName, FormatName
from triptych.workflows.calibration import num_feeds
from triptych.workflows.export_process import ExportJob
from triptych.workflows.export_workers import ExportWorkers
from triptych.workflows.measured_parity import MEASURE_STEPS, measure_parity
from triptych.workflows.optimum_export import (
    DISTRIBUTIONS,
    ExportEngine,
    check_optimum,
    run_optimum,
)

_KEPT_WEIGHT_BYTES = 1 << 30
"""A process that exported more weights than this is ended, which gives its memory back."""

_ASSETS = ("scheduler", "tokenizer", "tokenizer_2")
_TOOLCHAIN = (
    "triptych", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino",
    "openvino-tokenizers", "nncf", "coremltools", "numpy"
)  # fmt: skip


@runtime_checkable
class ExportProgress(Protocol):
    """Told how far each component of each format is; may be called from several threads."""

    def __call__(
        self, *, to: FormatName, component: ComponentName, stage: str, fraction: float
    ) -> None:
        """`stage` is a word for people, `fraction` between 0 and 1 of the component."""


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
        num_jobs: components exported at once, each in a process of its own.
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
    num_jobs: int = 2
    engine: ExportEngine = "triptych"
    measure_steps: int = MEASURE_STEPS


def export_bundles(
    request: ExportRequest, *, progress: ExportProgress | None = None
) -> dict[FormatName, Path]:
    """Export a checkpoint to one bundle for each format.

    Each bundle is written beside its place, every component is run against the PyTorch one it
    came from, and only then is it renamed. A failure or a kill leaves no half bundle.

    Returns:
        The bundle's folder for each format.

    Raises:
        UsageError: an unknown format or component, or a bundle that exists already.
        CheckpointError: the checkpoint is not whole, or not SDXL.
        VerificationError: an exported component disagrees with PyTorch, or a run of a compressed
            bundle gives NaN.
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
    # Threads of one process for each core would wait for those of the others.
    num_threads = max(1, (os.cpu_count() or 1) // max(1, request.num_jobs))
    with ExportWorkers(num_threads=num_threads) as workers:
        return {
            name: _export_bundle(
                checkpoint,
                request,
                workers,
                to=name,
                components=components,
                progress=progress,
            )
            for name in dict.fromkeys(request.formats)
        }


def _check_settings(request: ExportRequest, checkpoint: Checkpoint) -> None:
    """Refuse what an exporter does not have."""
    if request.engine == "optimum":
        others = {
            "--component": bool(request.components),
            "--variant": request.variant is not None,
            "a preview decoder": checkpoint.preview_decoder is not None,
        }
        check_optimum(request.formats, request.settings.precision, others=others)
    for name in request.formats:
        make_exporter(name, request.settings)


def _check_used(request: ExportRequest, components: Sequence[ComponentName]) -> None:
    """Refuse what no format or component takes, rather than leave it unused."""
    settings = request.settings
    if settings.calibration is not None and settings.precision != "hybrid":
        raise UsageError(
            f"calibration: got prompts with precision {settings.precision!r}, want hybrid: no "
            "other looks at activations. Leave --calibrate out."
        )
    plain = ExportSettings(precision=settings.precision, calibration=settings.calibration)
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
    progress: ExportProgress | None,
) -> Path:
    target = request.output / to
    with replace_folder(target, overwrite=request.overwrite, marker="model_index.json") as folder:
        if request.engine == "optimum":
            if progress is not None:
                progress(to=to, component=components[0], stage="optimum", fraction=0.0)
            run_optimum(checkpoint, folder, to=to, precision=request.settings.precision)
        else:
            _copy_assets(checkpoint, folder)
            make_exporter(to, request.settings).export_assets(folder)
        records = _export_components(
            checkpoint,
            request,
            workers,
            to=to,
            components=components,
            folder=folder,
            progress=progress,
        )
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
    return target


def _measuring(
    progress: ExportProgress | None, *, to: FormatName, component: ComponentName
) -> StageReporter:
    def report(stage: str) -> None:
        if progress is not None:
            progress(to=to, component=component, stage=f"measuring, {stage}", fraction=1.0)

    return report


def _export_components(
    checkpoint: Checkpoint,
    request: ExportRequest,
    workers: ExportWorkers,
    *,
    to: FormatName,
    components: Sequence[ComponentName],
    folder: Path,
    progress: ExportProgress | None,
) -> list[ComponentRecord]:
    preview = checkpoint.preview_decoder

    def export_one(component: ComponentName) -> ComponentRecord:
        job = ExportJob(
            checkpoint=str(checkpoint.folder),
            variant=checkpoint.variant,
            preview_decoder=None if preview is None else str(preview),
            component=component,
            format=to,
            settings=request.settings,
            bundle=str(folder),
            engine=request.engine,
        )

        def report(stage: str, fraction: float) -> None:
            if progress is not None:
                progress(to=to, component=component, stage=stage, fraction=fraction)

        keep = _weight_bytes(checkpoint, component) <= _KEPT_WEIGHT_BYTES
        record = workers.run(job, keep=keep, report=report)
        report("done", 1.0)
        return record

    # The largest first, so that the last worker is not left alone with it.
    order = sorted(components, key=lambda name: -_weight_bytes(checkpoint, name))
    with ThreadPoolExecutor(max_workers=max(1, request.num_jobs)) as pool:
        futures = {name: pool.submit(export_one, name) for name in order}
        try:
            return [futures[name].result() for name in components]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _weight_bytes(checkpoint: Checkpoint, component: ComponentName) -> int:
    return sum(file.stat().st_size for file in checkpoint.component_files(component))


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


def _toolchain(more: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version(), "os": platform.system().lower()}
    for name in (*_TOOLCHAIN, *more):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
