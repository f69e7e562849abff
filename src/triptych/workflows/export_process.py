"""The process that exports one component: the parent's side and the child's.

A process of its own gives its memory back for certain, and a crash in a converter ends one
component, not the caller. They speak JSON lines over the child's stdout; the child leaves when
its stdin ends, so that it does not outlive a killed parent.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, final

import msgspec

from triptych.bundle.bundle import make_artifact
from triptych.bundle.layouts import artifact_paths
from triptych.bundle.manifest import ComponentRecord, TensorRecord
from triptych.bundle.store import file_sha256
from triptych.errors import (
    BackendError,
    BrokenInputError,
    TriptychError,
    UsageError,
    VerificationError,
)
from triptych.exporters import make_exporter
from triptych.exporters.base import ExportReporter, ExportSettings
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.tensors import TensorSpec
from triptych.types import ComponentName, FormatName
from triptych.workflows.verify import verify_artifact

_ERRORS: dict[int, type[TriptychError]] = {
    1: VerificationError,
    2: UsageError,
    3: BrokenInputError,
    4: BackendError,
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """One component to export; crosses the process border as JSON.

    Attributes:
        checkpoint: the checkpoint's folder.
        variant: its weight variant.
        component: which component.
        format: to which format.
        settings: as asked for; the VAE may keep a higher precision.
        bundle: the unfinished bundle's folder.
    """

    checkpoint: str
    variant: str | None
    component: ComponentName
    format: FormatName
    settings: ExportSettings
    bundle: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """One line from the child: progress, or its end, well or badly."""

    stage: str = ""
    fraction: float = 0.0
    record: ComponentRecord | None = None
    error: str = ""
    exit_code: int = 0


def run_export_job(job: ExportJob, *, report: ExportReporter) -> ComponentRecord:
    """Export one component in a child process and wait for it.

    Raises:
        TriptychError: what the child raised, of the class with its exit code; BackendError when
            it ended without a word.
    """
    report("starting", 0.0)
    child = subprocess.Popen(
        [sys.executable, "-m", "triptych.workflows.export_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        return _follow(child, job, report)
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _follow(
    child: "subprocess.Popen[str]", job: ExportJob, report: ExportReporter
) -> ComponentRecord:
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise BackendError("export process: got no pipes, want three.")
    talk: list[str] = []
    listener = threading.Thread(target=talk.extend, args=(child.stderr,), daemon=True)
    listener.start()
    with contextlib.suppress(BrokenPipeError):  # it is gone already; below says how it ended
        child.stdin.write(msgspec.json.encode(job).decode() + "\n")
        child.stdin.flush()
    for line in child.stdout:
        message = msgspec.json.decode(line, type=_Message)
        if message.record is not None:
            return message.record
        if message.error:
            raise _ERRORS.get(message.exit_code, TriptychError)(message.error)
        report(message.stage, message.fraction)
    code = child.wait()
    listener.join(timeout=5)
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    hint = " Most often the machine ran out of memory." if code == -9 else ""
    raise BackendError(
        f"{job.component}: the export process ended with {ending}.{hint}\n{''.join(talk[-20:])}"
    )


def export_component(job: ExportJob, *, report: ExportReporter) -> ComponentRecord:
    """Export and verify one component in this process.

    Raises:
        CheckpointError: the weights are missing or do not fit.
        VerificationError: the artifact disagrees with PyTorch.
    """
    checkpoint = open_checkpoint(Path(job.checkpoint), variant=job.variant)
    exporter = make_exporter(job.format, job.settings)
    bundle = Path(job.bundle)
    exporter.export(checkpoint, job.component, bundle, report=report)
    paths = artifact_paths(bundle, job.component, checkpoint.config, artifact_format=job.format)
    artifact = make_artifact(
        job.component, checkpoint.config, paths=paths, artifact_format=job.format
    )
    precision = exporter.precision_of(job.component, checkpoint.config)
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


def _tensor_record(port: TensorSpec, names: dict[str, str]) -> TensorRecord:
    return TensorRecord(
        name=names.get(port.name), artifact_name=port.name, dtype=port.dtype, shape=port.shape
    )


def _source_hashes(checkpoint: Checkpoint, component: ComponentName) -> dict[str, str]:
    return {
        file.relative_to(checkpoint.folder).as_posix(): file_sha256(file)
        for file in checkpoint.component_files(component)
    }


def _main() -> None:
    """The child: one job from stdin, messages to stdout, everything else to stderr."""
    with _private_stdout() as stdout:

        def send(message: _Message) -> None:
            stdout.write(msgspec.json.encode(message).decode() + "\n")
            stdout.flush()

        job = msgspec.json.decode(sys.stdin.readline(), type=ExportJob)
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        try:
            record = export_component(
                job,
                report=lambda stage, fraction: send(_Message(stage=stage, fraction=fraction)),
            )
        except TriptychError as error:
            send(_Message(error=str(error), exit_code=error.exit_code))
        else:
            send(_Message(record=record))


@contextlib.contextmanager
def _private_stdout() -> Iterator[TextIO]:
    """Keep the real stdout for messages; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        yield stdout


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    _main()
