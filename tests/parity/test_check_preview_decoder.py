"""A check where one side has a preview decoder, or both, or its pictures are wrong."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.models.sdxl import COMPONENTS
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.record import default_settings, record
from triptych.parity.recording import RecordedCase, Recording
from triptych.parity.report import CandidateReport
from triptych.runtimes import make_runtime
from triptych.runtimes.base import RuntimeSettings
from triptych.types import FormatName

pytestmark = pytest.mark.slow

ONE_THREAD = RuntimeSettings(num_threads=1)


def record_reference(bundle: Bundle) -> Recording:
    usual = default_settings(bundle.config, num_inference_steps=2)
    settings = replace(usual, height_px=64, width_px=72)
    return record(bundle, make_runtime("pytorch", ONE_THREAD), settings, report=lambda _: None)


def check_against(recording: Recording, bundle: Bundle) -> CandidateReport:
    candidate = Candidate(
        bundle=bundle,
        runtime=make_runtime("onnxruntime", ONE_THREAD),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
    )
    return check(recording, candidate, report=lambda _: None).report


@pytest.fixture(scope="module")
def recording(checkpoint_bundle: Bundle) -> Recording:
    return record_reference(checkpoint_bundle)


@pytest.fixture(scope="module")
def preview_recording(preview_checkpoint: Path) -> Recording:
    return record_reference(open_bundle(preview_checkpoint))


@pytest.fixture
def onnx_with_preview(onnx_bundle: Bundle, preview_bundles: Mapping[FormatName, Bundle]) -> Bundle:
    """The whole bundle with a preview decoder, as an export of both gives it."""
    preview = preview_bundles["onnx"]
    artifacts = {**onnx_bundle.artifacts, **preview.artifacts}
    return replace(onnx_bundle, config=preview.config, artifacts=artifacts)


def test_a_preview_decoder_passes_where_both_sides_have_it(
    preview_recording: Recording, onnx_with_preview: Bundle
) -> None:
    report = check_against(preview_recording, onnx_with_preview)
    assert report.verdict == "passed"
    cases = [row.case for row in report.rows if row.component == "preview_decoder"]
    assert {"the run's first latents", "the run's last latents"} < set(cases)
    assert any("sigma 14.6" in case for case in cases)


def test_a_preview_decoder_that_the_reference_lacks_has_not_passed(
    recording: Recording, onnx_with_preview: Bundle
) -> None:
    report = check_against(recording, onnx_with_preview)
    missing = [row for row in report.rows if row.verdict != "passed"]
    assert [(row.stage, row.component) for row in missing] == [("component", "preview_decoder")]
    assert missing[0].reason == "the reference lacks it"
    assert report.verdict == "not_run"
    assert "preview_decoder" not in report.executions


def test_a_preview_decoder_that_the_bundle_lacks_is_not_asked_for(
    preview_recording: Recording, onnx_bundle: Bundle
) -> None:
    report = check_against(preview_recording, onnx_bundle)
    assert report.verdict == "passed"
    assert {row.component for row in report.rows if row.stage == "component"} == set(COMPONENTS)


def test_a_preview_decoder_that_was_not_exported_stops_no_run(
    preview_recording: Recording, onnx_with_preview: Bundle, onnx_bundle: Bundle
) -> None:
    without = replace(onnx_with_preview, artifacts=onnx_bundle.artifacts)
    report = check_against(preview_recording, without)
    missing = [row for row in report.rows if row.verdict != "passed"]
    assert [(row.component, row.reason) for row in missing] == [
        ("preview_decoder", "the bundle does not have it")
    ]


def test_a_preview_that_is_a_thousandth_too_bright(
    preview_recording: Recording, preview_bundles: Mapping[FormatName, Bundle]
) -> None:
    """Seen from the other side: the reference is darker."""
    cases = tuple(darker(case) for case in preview_recording.cases)
    report = check_against(replace(preview_recording, cases=cases), preview_bundles["onnx"])
    failed = [row for row in report.rows if row.verdict == "failed"]
    assert len(failed) == 5
    assert {(row.stage, row.component) for row in failed} == {("component", "preview_decoder")}
    for row in failed:
        assert row.rel_l2 == pytest.approx(1e-3, rel=0.05)


def darker(case: RecordedCase) -> RecordedCase:
    if case.component != "preview_decoder":
        return case
    image = case.outputs["image"] * np.float32(0.999)
    return replace(case, outputs={"image": image})
