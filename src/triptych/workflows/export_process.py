"""The process that exports components, one after another, as its parent tells it.

They speak JSON lines: jobs on stdin, messages on stdout. The process leaves when its stdin ends,
whatever it is doing, so that it does not outlive a killed parent.
"""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO, final

import msgspec

from triptych.bundle.bundle import make_artifact
from triptych.bundle.layouts import artifact_paths
from triptych.bundle.manifest import ComponentRecord, TensorRecord
from triptych.bundle.store import file_sha256
from triptych.errors import TriptychError
from triptych.exporters import make_exporter
from triptych.exporters.base import ExportReporter, ExportSettings
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.tensors import TensorSpec
from triptych.types import ComponentName, FormatName
from triptych.workflows.calibration import record_feeds
from triptych.workflows.check_candidates import stored_precision
from triptych.workflows.optimum_export import ExportEngine
from triptych.workflows.verify import verify_artifact


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """One component to export; crosses the process border as JSON.

    Attributes:
        checkpoint: the checkpoint's folder.
        variant: its weight variant.
        preview_decoder: its preview decoder's folder.
        component: which component.
        format: to which format.
        settings: as asked for; the VAE may keep a higher precision.
        bundle: the unfinished bundle's folder.
        engine: who converts; what optimum has written is only verified.
    """

    checkpoint: str
    variant: str | None
    preview_decoder: str | None = None
    component: ComponentName
    format: FormatName
    settings: ExportSettings
    bundle: str
    engine: ExportEngine = "triptych"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One line from the child: progress, or its end, well or badly."""

    stage: str = ""
    fraction: float = 0.0
    record: ComponentRecord | None = None
    error: str = ""
    exit_code: int = 0


def export_component(job: ExportJob, *, report: ExportReporter) -> ComponentRecord:
    """Export and verify one component in this process.

    Raises:
        CheckpointError: the weights are missing or do not fit.
        VerificationError: the artifact disagrees with PyTorch.
    """
    checkpoint = open_checkpoint(
        Path(job.checkpoint),
        variant=job.variant,
        preview_decoder=None if job.preview_decoder is None else Path(job.preview_decoder),
    )
    exporter = make_exporter(job.format, job.settings)
    bundle = Path(job.bundle)
    if job.engine == "triptych":
        with _calibrated(job, checkpoint, report=report) as settings:
            calibrated = make_exporter(job.format, settings)
            calibrated.export(checkpoint, job.component, bundle, report=report)
    paths = artifact_paths(bundle, job.component, checkpoint.config, artifact_format=job.format)
    artifact = make_artifact(
        job.component, checkpoint.config, paths=paths, artifact_format=job.format
    )
    precision = (
        exporter.precision_of(job.component, checkpoint.config)
        if job.engine == "triptych"
        else stored_precision(artifact)
    )
    facts = exporter.describe(*paths)
    report("verifying", 0.75)
    verification = verify_artifact(
        artifact,
        checkpoint,
        facts=facts,
        precision=precision,
        engine_name=exporter.verified_on,
    )
    names = {
        binding.artifact_name: binding.name
        for binding in (*artifact.bindings.inputs, *artifact.bindings.outputs)
    }
    files = tuple(path.relative_to(bundle).as_posix() for path in paths)
    return ComponentRecord(
        name=job.component,
        file=files[0],
        precision=precision,
        inputs=tuple(_tensor_record(port, names) for port in facts.inputs),
        outputs=tuple(_tensor_record(port, names) for port in facts.outputs),
        num_parameters=facts.num_parameters,
        weight_dtypes=facts.weight_dtypes,
        opset=facts.opset,
        source_sha256=_source_hashes(checkpoint, job.component),
        verification=verification,
        chunks=files if len(files) > 1 else (),
    )


@contextlib.contextmanager
def _calibrated(
    job: ExportJob, checkpoint: Checkpoint, *, report: ExportReporter
) -> Iterator[ExportSettings]:
    """The settings, with what the U-Net is fed recorded where its activations are to be rounded."""
    calibration = job.settings.calibration
    if calibration is None or job.component != "unet":
        yield job.settings
        return
    with TemporaryDirectory(dir=job.bundle, prefix=".") as folder:
        report("calibrating", 0.0)
        record_feeds(checkpoint, calibration, Path(folder), to=job.format)
        yield replace(job.settings, calibration=replace(calibration, folder=folder))


def _tensor_record(port: TensorSpec, names: dict[str, str]) -> TensorRecord:
    return TensorRecord(
        name=names.get(port.name), artifact_name=port.name, dtype=port.dtype, shape=port.shape
    )


def _source_hashes(checkpoint: Checkpoint, component: ComponentName) -> dict[str, str]:
    recorded = checkpoint.recorded_sha256(component)
    if recorded:
        return recorded
    parent = checkpoint.component_folder(component).parent  # a preview decoder may lie elsewhere
    return {
        file.relative_to(parent).as_posix(): file_sha256(file)
        for file in checkpoint.component_files(component)
    }


def _main() -> None:
    """The child: jobs from stdin, messages to stdout, everything else to stderr."""
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    with _private_stdout() as stdout:

        def send(message: Message) -> None:
            stdout.write(msgspec.json.encode(message).decode() + "\n")
            stdout.flush()

        while True:
            job = msgspec.json.decode(jobs.get(), type=ExportJob)
            try:
                record = export_component(
                    job,
                    report=lambda stage, fraction: send(Message(stage=stage, fraction=fraction)),
                )
            except TriptychError as error:
                send(Message(error=str(error), exit_code=error.exit_code))
            else:
                send(Message(record=record))


def _read_jobs(jobs: "queue.SimpleQueue[str]") -> None:
    """Pass lines on; leave at once when there will be no more."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(1)


@contextlib.contextmanager
def _private_stdout() -> Iterator[TextIO]:
    """Keep the real stdout for messages; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        yield stdout


if __name__ == "__main__":
    _main()
