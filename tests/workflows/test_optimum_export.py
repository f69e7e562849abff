"""Bundles that optimum's exporters write: verified, recorded and refused as triptych's own are."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from triptych.bundle.bundle import open_bundle
from triptych.errors import BackendError, UsageError, VerificationError
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.types import ComponentName, FormatName, Precision
from triptych.workflows import export as workflow
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.optimum_export import run_optimum


def request(
    checkpoint: Path,
    output: Path,
    *,
    to: FormatName = "openvino",
    precision: Precision = "fp32",
    components: tuple[ComponentName, ...] = (),
) -> ExportRequest:
    return ExportRequest(
        checkpoint=checkpoint,
        output=output,
        formats=[to],
        components=components,
        settings=ExportSettings(precision=precision),
        engine="optimum",
        measure_steps=0,
    )


@pytest.mark.slow
def test_what_optimum_writes_is_verified_and_recorded(checkpoint: Path, tmp_path: Path) -> None:
    asked = request(checkpoint, tmp_path / "out", precision="int8")
    bundle = open_bundle(export_bundles(asked)["openvino"])
    bundle.check_files()
    manifest = bundle.manifest
    assert manifest is not None
    assert manifest.precision == "int8"
    assert {"optimum", "optimum-intel"} <= set(manifest.toolchain)
    for record in manifest.components:
        assert record.precision == "int8"  # the VAE's too: optimum knows no exception
        assert record.verification
        assert all(one.rel_l2 <= COMPONENT_REL_L2["int8"] for one in record.verification)


@pytest.mark.slow
def test_a_bundle_that_disagrees_does_not_appear(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: one weight of one matrix, doubled by whoever wrote it."""

    def write_wrongly(_: Checkpoint, folder: Path, *, to: FormatName, precision: Precision) -> None:
        assert (to, precision) == ("onnx", "fp32")
        shutil.copytree(onnx_folder, folder, dirs_exist_ok=True)
        (folder / "triptych.json").unlink()
        path = folder / "text_encoder" / "model.onnx"
        model = onnx.load(str(path))
        weight = next(one for one in model.graph.initializer if len(one.dims) == 2)
        values = numpy_helper.to_array(weight).copy()
        values[-1, 0] *= 2
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        path.write_bytes(model.SerializeToString())

    monkeypatch.setattr(workflow, "run_optimum", write_wrongly)
    with pytest.raises(VerificationError, match=r"text_encoder .* want at most 1e-05 for fp32"):
        export_bundles(request(checkpoint, tmp_path / "out", to="onnx"))
    assert not list((tmp_path / "out").iterdir())  # nothing to go on from either


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_optimums_last_words_are_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho what was wrong >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(BackendError, match=r"(?s)got exit code 3.*what was wrong"):
        run_optimum(open_checkpoint(checkpoint), tmp_path, to="onnx", precision="fp32")


@pytest.mark.parametrize(
    ("to", "precision", "components", "told"),
    [
        ("coreml", "fp32", (), "got optimum for coreml, want one of onnx, openvino"),
        ("onnx", "int8", (), "with --engine optimum, want one of fp32, fp16"),
        ("openvino", "hybrid", (), "want one of fp32, fp16, int8, int4"),
        ("onnx", "fp32", ("unet",), "got optimum with --component, want neither"),
    ],
)
def test_what_optimum_does_not_have_is_refused_at_once(
    to: FormatName,
    precision: Precision,
    components: tuple[ComponentName, ...],
    told: str,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    asked = request(checkpoint, tmp_path / "out", to=to, precision=precision, components=components)
    with pytest.raises(UsageError, match=told):
        export_bundles(asked)
    assert not (tmp_path / "out").exists()


def test_an_export_of_optimums_is_not_gone_on_with(checkpoint: Path, tmp_path: Path) -> None:
    """What it wrote is one whole; and what triptych finished is not a part of it."""
    asked = replace(request(checkpoint, tmp_path / "out"), resume=True)
    with pytest.raises(UsageError, match="got optimum with --resume, want neither"):
        export_bundles(asked)
