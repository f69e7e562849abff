"""Fixtures that several kinds of test share. Everything is built here: no hub, no downloads."""

import logging
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.testing import tiny_checkpoint
from triptych.types import FormatName
from triptych.workflows.export import ExportRequest, export_bundles

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
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL checkpoint. Read only: copy it before changing anything."""
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


def _exported(to: FormatName, checkpoint: Path, output: Path) -> Path:
    request = ExportRequest(checkpoint=checkpoint, output=output, formats=[to])
    return export_bundles(request)[to]


@pytest.fixture(scope="session")
def onnx_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its float32 ONNX bundle. Read only: copy it before changing anything."""
    return _exported("onnx", checkpoint, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def onnx_bundle(onnx_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(onnx_folder)


@pytest.fixture(scope="session")
def openvino_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's float32 OpenVINO bundle. Read only: copy it before changing anything."""
    return _exported("openvino", checkpoint, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def openvino_bundle(openvino_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(openvino_folder)


@pytest.fixture(scope="session")
def coreml_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's float32 Core ML bundle. Read only: copy it before changing anything."""
    return _exported("coreml", checkpoint, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def coreml_bundle(coreml_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(coreml_folder)


@pytest.fixture(scope="session")
def checkpoint_bundle(checkpoint: Path) -> Bundle:
    """The checkpoint, opened as what PyTorch runs."""
    return open_bundle(checkpoint)


@pytest.fixture(scope="session")
def preview_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint with a preview decoder. Read only: copy it before changing anything."""
    return tiny_checkpoint(tmp_path_factory.mktemp("preview") / "tiny", preview_decoder=True)


@pytest.fixture(scope="session")
def preview_bundles(
    checkpoint: Path, preview_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[FormatName, Bundle]:
    """The preview decoder alone in every format. The exported ones took it from elsewhere."""
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("previews"),
        formats=["onnx", "openvino", "coreml"],
        components=["preview_decoder"],
        preview_decoder=preview_checkpoint / "preview_decoder",
        num_jobs=1,
    )
    whole = open_bundle(preview_checkpoint)
    only = replace(whole, artifacts={"preview_decoder": whole.artifact("preview_decoder")})
    exported = {name: open_bundle(folder) for name, folder in export_bundles(request).items()}
    return {"diffusers": only, **exported}


@pytest.fixture(autouse=True, scope="session")
def _quiet_diffusers() -> None:
    """diffusers logs which of optimum's distributions it found; no news here."""
    logging.getLogger("diffusers.utils.import_utils").setLevel(logging.ERROR)
