"""Fixtures that several kinds of test share. Everything is built here: no hub, no downloads."""

import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TypeAlias

import pytest
from filelock import FileLock

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.store import record_files
from triptych.cli.app import main
from triptych.exporters.base import ExportSettings
from triptych.testing import tiny_checkpoint
from triptych.testing.demo_model import DEMO_MODEL
from triptych.types import FormatName, Precision
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.export_workers import ExportWorkers

# Tests import OpenVINO themselves, and its import sends usage statistics: not from here.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how imports are refused


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: a long one at the end leaves the other workers idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection is wrong: everything it needs is built here."""

    def refuse(*_: object) -> None:
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _surroundings(num_threads: int) -> tuple[Path, Mapping[str, str]]:
    """What an export process that is started now takes over."""
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return Path.cwd(), {"OMP_NUM_THREADS": str(num_threads), **own}


@pytest.fixture(autouse=True, scope="session")
def _kept_export_processes() -> Iterator[None]:
    """Exports go on in the processes of those before: starting one takes longer than its job.

    Only where they would start alike: frameworks change the environment when they are imported. A
    test in a folder of its own gets processes of its own, and so does one that makes
    `ExportWorkers` itself, or exports in a process.
    """
    home, kept = Path.cwd(), ExportWorkers()
    started_in: tuple[Path, Mapping[str, str]] | None = None

    def workers(*, num_threads: int) -> AbstractContextManager[ExportWorkers]:
        nonlocal kept, started_in
        here = _surroundings(num_threads)
        if here[0] != home:
            return ExportWorkers(num_threads=num_threads)
        if here != started_in or kept._is_stopped:
            kept.__exit__(None, None, None)
            kept, started_in = ExportWorkers(num_threads=num_threads), here
        return nullcontext(kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("triptych.workflows.export.ExportWorkers", workers)
        yield
    kept.__exit__(None, None, None)


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def triptych() -> Cli:
    """The real entry point in this process, which has its frameworks loaded already.

    For what a command prints, writes and ends with. What the process itself does, such as what it
    imports and how it takes signals, shows in one of its own.
    """

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = ["triptych", *map(str, arguments)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command)
            with (
                redirect_stdout(StringIO()) as stdout,
                redirect_stderr(StringIO()) as stderr,
                pytest.raises(SystemExit) as ended,
            ):
                main()
        code = ended.value.code
        assert isinstance(code, int | None)
        return subprocess.CompletedProcess(
            command, code or 0, stdout=stdout.getvalue(), stderr=stderr.getvalue()
        )

    return run


BuiltOnce: TypeAlias = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltOnce]:
    """Builds a folder for all workers of the suite, which only read it; one builds, others wait."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    shared.mkdir(exist_ok=True)
    taken = {}

    def build_once(name: str, build: Callable[[Path], object]) -> Path:
        folder, whole = shared / name, shared / f"{name}.whole"
        with FileLock(shared / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed at it
                folder.mkdir()
                build(folder)
                whole.touch()
        taken[folder] = record_files(folder)
        return folder

    yield build_once
    for folder, files in taken.items():
        assert record_files(folder) == files, f"a test changed {folder}, which others read"


@pytest.fixture(scope="session")
def checkpoint(built_once: BuiltOnce) -> Path:
    """A tiny SDXL checkpoint. Read only: copy it before changing anything."""
    folder = built_once("checkpoint", lambda folder: tiny_checkpoint(folder / "tiny"))
    return folder / "tiny"


def _exported(
    to: FormatName,
    checkpoint: Path,
    built_once: BuiltOnce,
    precision: Precision = "fp32",
    *,
    name: str = "tiny",
) -> Path:
    def build(output: Path) -> None:
        settings = ExportSettings(precision=precision)
        export_bundles(
            ExportRequest(checkpoint=checkpoint, output=output, formats=[to], settings=settings)
        )

    return built_once(f"{name}-{to}-{precision}-bundle", build) / to


@pytest.fixture(scope="session")
def onnx_folder(checkpoint: Path, built_once: BuiltOnce) -> Path:
    """Its float32 ONNX bundle. Read only: copy it before changing anything."""
    return _exported("onnx", checkpoint, built_once)


@pytest.fixture(scope="session")
def demo_onnx_folder(built_once: BuiltOnce) -> Path:
    """The trained model's float32 ONNX bundle, where pictures must mean something. Read only."""
    return _exported("onnx", DEMO_MODEL, built_once, name="demo")


@pytest.fixture(scope="session")
def onnx_bundle(onnx_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(onnx_folder)


@pytest.fixture(scope="session")
def openvino_folder(checkpoint: Path, built_once: BuiltOnce) -> Path:
    """The checkpoint's float32 OpenVINO bundle. Read only: copy it before changing anything."""
    return _exported("openvino", checkpoint, built_once)


@pytest.fixture(scope="session")
def openvino_bundle(openvino_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(openvino_folder)


@pytest.fixture(scope="session")
def openvino_bf16_folder(checkpoint: Path, built_once: BuiltOnce) -> Path:
    """The checkpoint's bfloat16 OpenVINO bundle. Read only: copy it before changing anything."""
    return _exported("openvino", checkpoint, built_once, "bf16")


@pytest.fixture(scope="session")
def coreml_folder(checkpoint: Path, built_once: BuiltOnce) -> Path:
    """The checkpoint's float32 Core ML bundle. Read only: copy it before changing anything."""
    return _exported("coreml", checkpoint, built_once)


@pytest.fixture(scope="session")
def coreml_bundle(coreml_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(coreml_folder)


@pytest.fixture(scope="session")
def checkpoint_bundle(checkpoint: Path) -> Bundle:
    """The checkpoint, opened as what PyTorch runs."""
    return open_bundle(checkpoint)


@pytest.fixture(scope="session")
def preview_checkpoint(built_once: BuiltOnce) -> Path:
    """The same checkpoint with a preview decoder. Read only: copy it before changing anything."""

    def build(folder: Path) -> None:
        tiny_checkpoint(folder / "tiny", preview_decoder=True)

    return built_once("preview-checkpoint", build) / "tiny"


@pytest.fixture(scope="session")
def preview_bundles(
    checkpoint: Path, preview_checkpoint: Path, built_once: BuiltOnce
) -> Mapping[FormatName, Bundle]:
    """The preview decoder alone in every format. The exported ones took it from elsewhere."""
    formats: list[FormatName] = ["onnx", "openvino", "coreml"]

    def build(output: Path) -> None:
        request = ExportRequest(
            checkpoint=checkpoint,
            output=output,
            formats=formats,
            components=["preview_decoder"],
            preview_decoder=preview_checkpoint / "preview_decoder",
            num_jobs=1,
        )
        export_bundles(request)

    folder = built_once("preview-bundles", build)
    whole = open_bundle(preview_checkpoint)
    only = replace(whole, artifacts={"preview_decoder": whole.artifact("preview_decoder")})
    return {"diffusers": only, **{name: open_bundle(folder / name) for name in formats}}


@pytest.fixture(autouse=True, scope="session")
def _quiet_diffusers() -> None:
    """diffusers logs which of optimum's distributions it found; no news here."""
    logging.getLogger("diffusers.utils.import_utils").setLevel(logging.ERROR)
