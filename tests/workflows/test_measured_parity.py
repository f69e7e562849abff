"""What compression costs, as a bundle's manifest says: the same as a check measures."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.manifest import MeasuredParity
from triptych.cli.app import app
from triptych.errors import VerificationError
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import open_checkpoint
from triptych.parity.candidate import Candidate
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.report import CandidateReport
from triptych.runtimes.base import RuntimeSettings
from triptych.testing.spoilt import SpoiltRuntime
from triptych.types import Array, TensorMap
from triptych.workflows import measured_parity
from triptych.workflows.check import CheckRequest, check_bundle
from triptych.workflows.check_candidates import find_candidates
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.inspect import inspect_path
from triptych.workflows.record import RunRequest

STEPS = 2


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint with weights of 4 bits."""
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("compressed"),
        formats=["onnx"],
        settings=ExportSettings(precision="int4"),
        measure_steps=STEPS,
    )
    return open_bundle(export_bundles(request)["onnx"])


def parity_of(bundle: Bundle) -> MeasuredParity:
    assert bundle.manifest is not None
    assert bundle.manifest.parity is not None
    return bundle.manifest.parity


def checked(bundle: Bundle, checkpoint: Path) -> CandidateReport:
    parity = parity_of(bundle)
    request = CheckRequest(
        bundle=bundle.folder,
        reference=checkpoint,
        run=RunRequest(
            num_inference_steps=parity.num_inference_steps,
            height_px=parity.height_px,
            width_px=parity.width_px,
        ),
        profile="quick",
    )
    (report,) = check_bundle(request, report=lambda _: None).report.candidates
    return report


@pytest.mark.slow
def test_a_check_gives_the_figures_of_the_manifest(bundle: Bundle, checkpoint: Path) -> None:
    parity, report = parity_of(bundle), checked(bundle, checkpoint)
    assert (parity.engine, parity.num_inference_steps) == ("onnxruntime", STEPS)
    assert set(parity.components) == set(bundle.artifacts)
    for name, distance in parity.components.items():
        rows = [row for row in report.rows if (row.stage, row.component) == ("component", name)]
        assert distance.rel_l2 == max(row.rel_l2 for row in rows if row.rel_l2 is not None)
        assert distance.psnr_db == min(row.psnr_db for row in rows if row.psnr_db is not None)
    run = [row for row in report.rows if row.stage == "free_running"]
    assert parity.trajectory is not None
    assert parity.trajectory.rel_l2 == run[-1].rel_l2
    assert run[-1].step == STEPS
    assert parity.worst_step_rel_l2 == max(row.rel_l2 for row in run if row.rel_l2 is not None)
    (image,) = (row for row in report.rows if row.stage == "image")
    assert parity.image is not None
    assert (parity.image.rel_l2, parity.image.psnr_db) == (image.rel_l2, image.psnr_db)
    assert parity.image_ssim == image.ssim


def test_figures_are_of_what_was_compressed(bundle: Bundle) -> None:
    parity = parity_of(bundle)
    assert parity.components["vae_decoder"].rel_l2 < COMPONENT_REL_L2["fp32"]
    assert 0.05 < parity.components["unet"].rel_l2 < COMPONENT_REL_L2["int4"]
    assert parity.trajectory is not None
    assert parity.trajectory.rel_l2 > 0.01
    assert parity.image_ssim is not None
    assert parity.image_ssim < 1


def test_inspect_shows_them_beside_the_size(bundle: Bundle) -> None:
    parity = parity_of(bundle)
    document = inspect_path(bundle.folder).to_json()
    assert isinstance(document["parity"], dict)
    assert document["parity"]["components"]["unet"]["rel_l2"] == parity.components["unet"].rel_l2
    shown = CliRunner().invoke(app, ["inspect", str(bundle.folder)], catch_exceptions=False)
    assert f"{parity.components['unet'].rel_l2:.1e}" in shown.stdout
    assert f"measured: onnxruntime {parity.engine_version}" in shown.stdout
    assert f"SSIM {parity.image_ssim:.4f}" in shown.stdout
    assert "uint4" in shown.stdout


def test_what_is_not_compressed_is_not_measured(onnx_bundle: Bundle) -> None:
    assert onnx_bundle.manifest is not None
    assert onnx_bundle.manifest.parity is None
    assert inspect_path(onnx_bundle.folder).to_json()["parity"] is None


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1])
def test_a_bundle_of_one_component_has_no_run(steps: int, checkpoint: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path,
        formats=["onnx"],
        components=["text_encoder"],
        settings=ExportSettings(precision="int8"),
        measure_steps=steps,
        num_jobs=1,
    )
    manifest = open_bundle(export_bundles(request)["onnx"]).manifest
    assert manifest is not None
    if steps == 0:
        assert manifest.parity is None
        return
    assert manifest.parity is not None
    assert set(manifest.parity.components) == {"text_encoder"}
    assert manifest.parity.trajectory is None
    assert manifest.parity.image is None


@pytest.mark.slow
def test_nan_on_the_way_is_no_figure(
    bundle: Bundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(
        path: Path, names: tuple[str, ...], settings: RuntimeSettings
    ) -> tuple[Candidate, ...]:
        return tuple(
            replace(
                one,
                runtime=SpoiltRuntime(runtime=one.runtime, component="unet", spoil=give_nan),
            )
            for one in find_candidates(path, names, settings)
        )

    monkeypatch.setattr(measured_parity, "find_candidates", spoilt)
    with pytest.raises(VerificationError, match=r"unet.*want figures that say what compression"):
        measured_parity.measure_parity(
            bundle.folder,
            open_checkpoint(checkpoint),
            engine_name="onnxruntime",
            num_inference_steps=1,
            report=lambda _: None,
        )


def give_nan(_: TensorMap, outputs: dict[str, Array]) -> dict[str, Array]:
    return {name: np.full_like(value, math.nan) for name, value in outputs.items()}
