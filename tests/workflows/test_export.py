"""Export as a whole: what a bundle holds, what is verified, and how a worker's end is told."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.store import file_sha256, record_files
from triptych.errors import BackendError, CheckpointError, UsageError, VerificationError
from triptych.exporters.base import ExportSettings
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session
from triptych.types import ComponentName, FormatName
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.export_process import ExportJob, export_component
from triptych.workflows.export_workers import ExportWorkers

COMPONENTS = {"text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"}


def job(checkpoint: Path, bundle: Path) -> ExportJob:
    return ExportJob(
        checkpoint=str(checkpoint),
        variant=None,
        component="text_encoder",
        format="onnx",
        settings=ExportSettings(),
        bundle=str(bundle),
    )


def ignore(stage: str, fraction: float) -> None:
    pass


# --- a whole bundle ------------------------------------------------------------------------------


def test_bundle_stands_alone(onnx_folder: Path, checkpoint: Path) -> None:
    assert {path.name for path in onnx_folder.iterdir()} == {
        *COMPONENTS,
        "model_index.json",
        "scheduler",
        "tokenizer",
        "tokenizer_2",
        "triptych.json",
    }
    for asset in ("scheduler/scheduler_config.json", "tokenizer_2/merges.txt", "model_index.json"):
        assert (onnx_folder / asset).read_bytes() == (checkpoint / asset).read_bytes()
    assert {path.name for path in onnx_folder.parent.iterdir()} == {"onnx"}  # no leftovers


def test_manifest_promises_every_file_but_itself(onnx_folder: Path, onnx_bundle: Bundle) -> None:
    assert onnx_bundle.manifest is not None
    found = tuple(one for one in record_files(onnx_folder) if one.path != "triptych.json")
    assert onnx_bundle.manifest.files == found


def test_every_component_was_compared_with_pytorch(onnx_bundle: Bundle, checkpoint: Path) -> None:
    assert onnx_bundle.manifest is not None
    records = {record.name: record for record in onnx_bundle.manifest.components}
    assert set(records) == COMPONENTS
    for record in records.values():
        assert record.verification
        assert {one.limit for one in record.verification} == {COMPONENT_REL_L2["fp32"]}
        assert all(one.rel_l2 <= one.limit for one in record.verification)
        for path, sha256 in record.source_sha256.items():
            assert file_sha256(checkpoint / path) == sha256
    between = "t=500.5 batch 1 latents 8x8"  # where an integer timestep shows
    assert between in {one.case for one in records["unet"].verification}


# --- a part of one -------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_component_makes_a_bundle_that_opens(checkpoint: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []

    def progress(*, to: FormatName, component: ComponentName, stage: str, fraction: float) -> None:
        assert (to, component) == ("onnx", "text_encoder")
        told.append((stage, fraction))

    request = ExportRequest(
        checkpoint=checkpoint, output=tmp_path, formats=["onnx"], components=["text_encoder"]
    )
    folder = export_bundles(request, progress=progress)["onnx"]

    bundle = open_bundle(folder)
    assert set(bundle.artifacts) == {"text_encoder"}
    bundle.check_files()
    with open_session(make_runtime("onnxruntime"), bundle, "text_encoder") as session:
        assert session.spec.name == "text_encoder"
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    stages = [stage for stage, _ in told]
    assert stages == ["starting", "tracing", "weights", "checking", "verifying", "done"]
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


# --- what is refused -----------------------------------------------------------------------------


def test_a_bundle_that_exists_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "mine.txt").write_text("mine")
    request = ExportRequest(checkpoint=checkpoint, output=tmp_path, formats=["onnx"])
    with pytest.raises(UsageError, match="exists"):
        export_bundles(request)
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "mine.txt"]


def test_unknown_component_is_named_with_the_known_ones(checkpoint: Path, tmp_path: Path) -> None:
    without = checkpoint_without_text_encoder(checkpoint, tmp_path / "checkpoint")
    request = ExportRequest(
        checkpoint=without,
        output=tmp_path / "out",
        formats=["onnx"],
        components=["text_encoder"],
    )
    with pytest.raises(UsageError, match="got text_encoder, this base model has text_encoder_2"):
        export_bundles(request)
    assert not (tmp_path / "out").exists()


def checkpoint_without_text_encoder(checkpoint: Path, target: Path) -> Path:
    """Links to a checkpoint's folders, with one of them left out of the index."""
    target.mkdir()
    for path in checkpoint.iterdir():
        if path.is_dir():
            (target / path.name).symlink_to(path)
    index = json.loads((checkpoint / "model_index.json").read_text(encoding="utf-8"))
    index["text_encoder"] = [None, None]
    (target / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return target


def test_no_format(checkpoint: Path, tmp_path: Path) -> None:
    request = ExportRequest(checkpoint=checkpoint, output=tmp_path / "out", formats=[])
    with pytest.raises(
        UsageError, match="formats: got none, want at least one of coreml, onnx, openvino"
    ):
        export_bundles(request)


def test_precision_that_the_format_does_not_compute_in(checkpoint: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path / "out",
        formats=["onnx"],
        settings=ExportSettings(precision="bf16"),
    )
    with pytest.raises(UsageError, match="got precision 'bf16', want one of fp32, fp16"):
        export_bundles(request)
    assert not (tmp_path / "out").exists()


def test_no_checkpoint(tmp_path: Path) -> None:
    request = ExportRequest(checkpoint=tmp_path, output=tmp_path / "out", formats=["onnx"])
    with pytest.raises(CheckpointError, match="model_index"):
        export_bundles(request)


# --- one component -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_component_beyond_its_limit_is_an_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text_encoder").mkdir()
    monkeypatch.setattr("triptych.workflows.verify.COMPONENT_REL_L2", {"fp32": 1e-12})
    with pytest.raises(VerificationError, match=r"text_encoder 'hidden_states' on prompt 0: got"):
        export_component(job(checkpoint, tmp_path), report=ignore)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that the parent takes for Python, to end as a worker may."""
    script = tmp_path / "worker"
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return script


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("read job; echo boom >&2; exit 7", r"text_encoder: .*ended with exit code 7.\nboom"),
        ("exit 7", "ended with exit code 7"),  # before the job is even written
        ("read job; kill -9 $$", "ended with signal 9. Most often .* out of memory"),
        ("read job; kill -11 $$", "ended with signal 11"),
    ],
)
def test_a_worker_that_ends_without_a_word(
    worker: Path, checkpoint: Path, tmp_path: Path, lines: str, told: str
) -> None:
    worker.write_text(f"#!/bin/sh\n{lines}\n")
    with ExportWorkers() as workers, pytest.raises(BackendError, match=told):
        workers.run(job(checkpoint, tmp_path), keep=True, report=ignore)


@pytest.mark.slow
def test_a_worker_leaves_when_its_parent_is_gone(checkpoint: Path, tmp_path: Path) -> None:
    """Not when it next has something to say: tracing a large network takes minutes."""
    (tmp_path / "text_encoder").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "triptych.workflows.export_process"],
        input=msgspec.json.encode(job(checkpoint, tmp_path)) + b"\n",  # and its stdin ends
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"verif" not in done.stdout  # it was not half done
    assert done.stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
@pytest.mark.parametrize(
    ("code", "error"), [(1, VerificationError), (2, UsageError), (4, BackendError)]
)
def test_a_workers_error_keeps_its_message_and_exit_code(
    worker: Path, checkpoint: Path, tmp_path: Path, code: int, error: type[Exception]
) -> None:
    message = json.dumps({"error": "what went wrong", "exit_code": code})
    worker.write_text(f"#!/bin/sh\nread job\necho '{message}'\n")
    with ExportWorkers() as workers, pytest.raises(error, match=r"^what went wrong$"):
        workers.run(job(checkpoint, tmp_path), keep=True, report=ignore)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_a_worker_does_as_many_jobs_as_it_is_kept_for(
    *, keep: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    start: Callable[..., subprocess.Popen[str]] = subprocess.Popen

    def count(*arguments: object, **options: object) -> "subprocess.Popen[str]":
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", count)
    with ExportWorkers() as workers:
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            record = workers.run(job(checkpoint, folder), keep=keep, report=ignore)
            assert record.name == "text_encoder"
    assert len(started) == (1 if keep else 2)
    assert all(process.poll() is not None for process in started)
