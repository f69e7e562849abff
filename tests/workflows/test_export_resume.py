"""A failure loses nothing finished, an interrupt leaves nothing, a full disk is foretold."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from triptych.bundle.bundle import open_bundle
from triptych.bundle.manifest import ComponentRecord, read_manifest
from triptych.bundle.store import check_files
from triptych.errors import BackendError, OutputError, UsageError
from triptych.exporters.base import ExportReporter, ExportSettings
from triptych.models.checkpoint import open_checkpoint
from triptych.types import ComponentName, FormatName, Precision
from triptych.workflows import export_components
from triptych.workflows.export import ExportRequest, estimate_request, export_bundles
from triptych.workflows.export_components import choose_num_jobs
from triptych.workflows.export_process import ExportJob
from triptych.workflows.export_workers import ExportWorkers

SMALL: tuple[ComponentName, ...] = ("text_encoder", "text_encoder_2", "vae_decoder")
RUN = ExportWorkers.run


def request_of(checkpoint: Path, output: Path, *, resume: bool = False) -> ExportRequest:
    return ExportRequest(
        checkpoint=checkpoint,
        output=output,
        formats=["onnx"],
        components=SMALL,
        resume=resume,
        num_jobs=1,
    )


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that were exported; `vae_decoder` fails while `fail` stands in the list."""
    names: list[str] = []

    def run(
        self: ExportWorkers, job: ExportJob, *, keep: bool, report: ExportReporter
    ) -> ComponentRecord:
        if job.component == "vae_decoder" and "fail" in names:
            raise BackendError("the export process ended with signal 9.")
        names.append(job.component)
        return RUN(self, job, keep=keep, report=report)

    monkeypatch.setattr(ExportWorkers, "run", run)
    # Components are begun from the largest on; here the one that fails comes last.
    monkeypatch.setattr(export_components, "weight_bytes", lambda _, name: -SMALL.index(name))
    return names


@pytest.mark.slow
def test_a_failure_keeps_what_was_finished(
    checkpoint: Path, tmp_path: Path, tried: list[str]
) -> None:
    tried.append("fail")
    with pytest.raises(BackendError, match="signal 9"):
        export_bundles(request_of(checkpoint, tmp_path))
    assert tried == ["fail", "text_encoder", "text_encoder_2"]
    assert [path.name for path in tmp_path.iterdir()] == [".onnx.unfinished"]

    other = ExportSettings(precision="fp16")
    with pytest.raises(UsageError, match="of other settings"):
        export_bundles(
            ExportRequest(
                checkpoint=checkpoint,
                output=tmp_path,
                formats=["onnx"],
                components=SMALL,
                settings=other,
                resume=True,
            )
        )

    tried.clear()
    folder = export_bundles(request_of(checkpoint, tmp_path, resume=True))["onnx"]
    assert tried == ["vae_decoder"]
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    manifest = read_manifest(folder)
    assert tuple(record.name for record in manifest.components) == SMALL
    check_files(folder, manifest.files)
    for name in SMALL:
        assert open_bundle(folder).artifact(name).path.is_file()


@pytest.mark.slow
def test_without_resume_an_export_begins_anew(
    checkpoint: Path, tmp_path: Path, tried: list[str]
) -> None:
    tried.append("fail")
    with pytest.raises(BackendError):
        export_bundles(request_of(checkpoint, tmp_path))
    tried.clear()
    export_bundles(request_of(checkpoint, tmp_path))
    assert tried == list(SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_nothing_to_resume_is_no_error(checkpoint: Path, tmp_path: Path, tried: list[str]) -> None:
    tried.append("fail")
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path,
        formats=["onnx"],
        components=["vae_decoder"],
        resume=True,
    )
    with pytest.raises(BackendError):
        export_bundles(request)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C goes another way there")
def test_an_interrupt_ends_the_processes_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    paths = (str(checkpoint), str(tmp_path / "out"))
    # Where tests run in the background, interrupts are ignored, and children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from triptych.cli.app import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "export", *paths, "--to", "onnx"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    children: list[int] = []
    deadline = time.monotonic() + 120
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        tasks = Path(f"/proc/{process.pid}/task")
        children = [
            int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()
        ]
    process.send_signal(signal.SIGINT)  # to the parent alone
    assert process.wait(timeout=60) == 130
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != ".gitignore"]
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "an export process outlived its parent"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_disk_that_cannot_hold_it_is_told_with_the_numbers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"got 0\.001 GB free, want 0\.00232 GB"):
        export_bundles(request_of(checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_measuring_what_compression_costs_takes_time(checkpoint: Path, tmp_path: Path) -> None:
    def seconds(precision: Precision, measure_steps: int) -> float:
        request = ExportRequest(
            checkpoint=checkpoint,
            output=tmp_path,
            formats=["openvino"],
            settings=ExportSettings(precision=precision),
            measure_steps=measure_steps,
        )
        return estimate_request(request).seconds

    assert seconds("int8", 8) > seconds("int8", 4) > seconds("int8", 0)
    assert seconds("fp16", 8) == seconds("fp16", 0)


def test_estimates_are_about_what_bundles_take(
    checkpoint: Path, onnx_folder: Path, openvino_folder: Path
) -> None:
    bundles: dict[FormatName, Path] = {"onnx": onnx_folder, "openvino": openvino_folder}
    for to, folder in bundles.items():
        request = ExportRequest(checkpoint=checkpoint, output=folder, formats=[to])
        taken = sum(file.size_bytes for file in read_manifest(folder).files)
        assert 0.6 < estimate_request(request).disk_bytes / taken < 1.2


def test_large_components_are_exported_one_by_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_checkpoint(checkpoint)
    assert choose_num_jobs(None, opened, ["unet"]) == 2
    assert choose_num_jobs(3, opened, ["unet"]) == 3
    monkeypatch.setattr(export_components, "LARGE_BYTES", 1000)
    assert choose_num_jobs(None, opened, ["unet"]) == 1
