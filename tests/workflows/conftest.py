"""What tests of several workflows share."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from triptych.bundle.bundle import Artifact
from triptych.bundle.manifest import read_manifest, write_manifest
from triptych.bundle.store import record_files
from triptych.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from triptych.types import ComponentName

Change: TypeAlias = Callable[[Path], None]
Changed: TypeAlias = Callable[[Path, Change], Path]


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """Copies a bundle with a change in it, as if the fault had been there at export."""

    def make(folder: Path, change: Change) -> Path:
        bundle = shutil.copytree(folder, tmp_path / "changed")
        change(bundle)
        manifest = read_manifest(bundle)
        (bundle / "triptych.json").unlink()
        write_manifest(replace(manifest, files=record_files(bundle)), bundle)
        return bundle

    return make


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ComponentName]:
    """What ONNX Runtime opens, in order."""
    names: list[ComponentName] = []
    really = OnnxRuntime.open

    def told(self: OnnxRuntime, artifact: Artifact) -> OnnxRuntimeSession:
        names.append(artifact.spec.name)
        session = really(self, artifact)
        assert isinstance(session, OnnxRuntimeSession)
        return session

    monkeypatch.setattr(OnnxRuntime, "open", told)
    return names
