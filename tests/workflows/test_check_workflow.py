"""What a check refuses to compare, and the precision that a bundle declares."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BrokenInputError, BundleError, CheckpointError, UsageError
from triptych.parity.report import CandidateReport, ParityReport
from triptych.runtimes.base import RuntimeSettings
from triptych.types import FormatName
from triptych.workflows.check import CheckRequest, check_bundle
from triptych.workflows.check_candidates import declared_precisions
from triptych.workflows.record import RunRequest


def check(
    bundle: Path,
    reference: Path,
    *,
    runtime: str | None = None,
    preview_decoder: Path | None = None,
) -> ParityReport:
    request = CheckRequest(
        bundle=bundle,
        reference=reference,
        runtimes=() if runtime is None else (runtime,),
        runtime_settings=RuntimeSettings(num_threads=1),
        run=RunRequest(num_inference_steps=1),
        preview_decoder=preview_decoder,
    )
    return check_bundle(request, report=lambda _: None).report


def only(report: ParityReport) -> CandidateReport:
    (candidate,) = report.candidates
    return candidate


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


@pytest.fixture
def foreign(onnx_folder: Path, tmp_path: Path) -> Path:
    """A copy without its manifest, as if optimum-cli had made it."""
    folder = shutil.copytree(onnx_folder, tmp_path / "foreign")
    (folder / "triptych.json").unlink()
    return folder


# --- what cannot be compared ---------------------------------------------------------------------


def test_a_bundle_is_no_reference(onnx_folder: Path) -> None:
    with pytest.raises(BrokenInputError, match="as the reference, want the checkpoint"):
        check(onnx_folder, onnx_folder)


def test_models_of_other_sizes(foreign: Path, checkpoint: Path) -> None:
    edit(foreign / "unet" / "config.json", cross_attention_dim=96)
    with pytest.raises(BrokenInputError, match=r"in model\.cross_attention_dim 96 and 80"):
        check(foreign, checkpoint)


def test_other_noise_levels(foreign: Path, checkpoint: Path) -> None:
    edit(foreign / "scheduler" / "scheduler_config.json", beta_end=0.02)
    with pytest.raises(BrokenInputError, match=r"in scheduler_config\.beta_end 0\.02 and 0\.012\."):
        check(foreign, checkpoint)


def test_damage_is_found_before_anything_runs(
    onnx_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    edit(folder / "unet" / "config.json", _name="another")
    with pytest.raises(BundleError, match=r"got unet/config\.json: "):
        check(folder, checkpoint)


def test_no_reference(onnx_folder: Path, tmp_path: Path) -> None:
    with pytest.raises((BundleError, CheckpointError), match="missing"):
        check(onnx_folder, tmp_path / "missing")


def test_engine_that_does_not_read_the_bundle(onnx_folder: Path, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="got 'pytorch', which reads diffusers, for"):
        check(onnx_folder, checkpoint, runtime="pytorch")


@pytest.mark.slow
def test_a_version_of_diffusers_in_the_schedule_is_no_difference(
    foreign: Path, checkpoint: Path
) -> None:
    edit(foreign / "scheduler" / "scheduler_config.json", _diffusers_version="0.0.1")
    report = check(foreign, checkpoint)
    assert report.verdict == "passed"
    assert report.settings["num_inference_steps"] == 1


# --- a preview decoder on one side alone ----------------------------------------------------------


@pytest.mark.slow
def test_a_preview_decoder_of_the_bundle_alone_is_checked_when_it_is_named(
    preview_bundles: Mapping[FormatName, Bundle], checkpoint: Path, preview_checkpoint: Path
) -> None:
    folder = preview_bundles["onnx"].folder

    def verdicts(preview_decoder: Path | None) -> set[str]:
        report = check(folder, checkpoint, preview_decoder=preview_decoder)
        return {row.verdict for row in only(report).rows if row.component == "preview_decoder"}

    assert verdicts(None) == {"not_run"}
    assert verdicts(preview_checkpoint / "preview_decoder") == {"passed"}


@pytest.mark.slow
def test_a_preview_decoder_of_the_reference_alone_is_no_difference(
    onnx_folder: Path, preview_checkpoint: Path
) -> None:
    report = check(onnx_folder, preview_checkpoint)
    assert report.verdict == "passed"
    assert "preview_decoder" not in {row.component for row in only(report).rows}


# --- declared precision --------------------------------------------------------------------------


def test_precision_is_the_manifests(onnx_bundle: Bundle) -> None:
    record = onnx_bundle.artifacts["unet"].record
    assert record is not None
    half = replace(onnx_bundle.artifacts["unet"], record=replace(record, precision="fp16"))
    bundle = replace(onnx_bundle, artifacts={**onnx_bundle.artifacts, "unet": half})
    declared = declared_precisions(bundle, RuntimeSettings())
    assert declared["unet"] == "fp16"
    assert {found for name, found in declared.items() if name != "unet"} == {"fp32"}


def test_precision_without_a_manifest_is_that_of_most_weights(foreign: Path) -> None:
    path = foreign / "vae_encoder" / "model.onnx"
    model = onnx.load(path)
    for weight in list(model.graph.initializer)[1:]:
        if weight.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(weight).astype("float16")
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    declared = declared_precisions(open_bundle(foreign), RuntimeSettings())
    assert declared["vae_encoder"] == "fp16"
    assert declared["unet"] == "fp32"


def test_precision_of_a_checkpoint_is_what_is_asked_of_pytorch(checkpoint_bundle: Bundle) -> None:
    assert set(declared_precisions(checkpoint_bundle, RuntimeSettings()).values()) == {"fp32"}
    asked = declared_precisions(checkpoint_bundle, RuntimeSettings(precision="bf16"))
    assert set(asked.values()) == {"bf16"}
