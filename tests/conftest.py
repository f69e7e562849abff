"""Fixtures that several kinds of test share. Everything is built here: no hub, no downloads."""

import logging
import socket
import sys
from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.testing import tiny_checkpoint
from triptych.workflows.export import ExportRequest, export_bundles

# Tests import OpenVINO themselves, and its import sends usage statistics: not from here.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how imports are refused


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


@pytest.fixture(scope="session")
def onnx_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its float32 ONNX bundle. Read only: copy it before changing anything."""
    output = tmp_path_factory.mktemp("bundles")
    request = ExportRequest(checkpoint=checkpoint, output=output, formats=["onnx"])
    return export_bundles(request)["onnx"]


@pytest.fixture(scope="session")
def onnx_bundle(onnx_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(onnx_folder)


@pytest.fixture(scope="session")
def openvino_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's float32 OpenVINO bundle. Read only: copy it before changing anything."""
    output = tmp_path_factory.mktemp("bundles")
    request = ExportRequest(checkpoint=checkpoint, output=output, formats=["openvino"])
    return export_bundles(request)["openvino"]


@pytest.fixture(scope="session")
def openvino_bundle(openvino_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(openvino_folder)


@pytest.fixture(scope="session")
def coreml_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's float32 Core ML bundle. Read only: copy it before changing anything."""
    output = tmp_path_factory.mktemp("bundles")
    request = ExportRequest(checkpoint=checkpoint, output=output, formats=["coreml"])
    return export_bundles(request)["coreml"]


@pytest.fixture(scope="session")
def coreml_bundle(coreml_folder: Path) -> Bundle:
    """The same bundle, opened."""
    return open_bundle(coreml_folder)


@pytest.fixture(scope="session")
def checkpoint_bundle(checkpoint: Path) -> Bundle:
    """The checkpoint, opened as what PyTorch runs."""
    return open_bundle(checkpoint)


@pytest.fixture(autouse=True, scope="session")
def _quiet_diffusers() -> None:
    """diffusers logs which of optimum's distributions it found; no news here."""
    logging.getLogger("diffusers.utils.import_utils").setLevel(logging.ERROR)
