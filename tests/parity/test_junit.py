"""JUnit XML as CI systems read it."""

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.parity.junit import junit_xml
from triptych.parity.report import CandidateReport, ParityReport, Row
from triptych.types import Verdict

NAN = Row(
    stage="free_running",
    component="unet",
    case="seed 0",
    tensor="latents",
    step=8,
    precision="fp32",
    rel_l2=math.nan,
    limit=1e-4,
    verdict="failed",
    reason="NaN",
)


def read(report: ParityReport) -> ET.Element:
    return ET.fromstring(junit_xml(report).encode())  # noqa: S314  our own document


def suite_of(report: ParityReport, *rows: Row, unavailable: str = "") -> ET.Element:
    candidate = CandidateReport(
        runtime="x", bundle="y", format="onnx", rows=rows, unavailable=unavailable
    )
    (suite,) = read(replace(report, candidates=(candidate,)))
    return suite


def test_a_suite_for_each_engine_and_a_case_for_each_row(parity_report: ParityReport) -> None:
    suites = read(parity_report)
    assert [suite.get("name") for suite in suites] == ["onnxruntime", "openvino", "coreml"]
    counts = [
        tuple(suite.get(name) for name in ("tests", "failures", "skipped", "errors"))
        for suite in (*suites, suites)
    ]
    assert counts == [
        ("29", "0", "0", "0"),
        ("30", "29", "1", "0"),
        ("1", "0", "1", "0"),
        ("60", "29", "2", "0"),
    ]
    names = [
        (case.get("classname"), case.get("name"))
        for suite in suites
        for case in suite.iter("testcase")
    ]
    assert len(set(names)) == len(names)
    assert ("triptych.onnxruntime.component", "unet, t=999, noise_pred") in names


@pytest.mark.parametrize(
    ("verdict", "tags"),
    [("passed", []), ("warned", ["system-out"]), ("failed", ["failure"]), ("not_run", ["skipped"])],
)
def test_a_verdict_is_what_ci_shows(
    parity_report: ParityReport, verdict: Verdict, tags: list[str]
) -> None:
    suite = suite_of(parity_report, replace(NAN, verdict=verdict, reason="why <so>"))
    (case,) = suite.iter("testcase")
    assert [child.tag for child in case] == tags
    said = "".join(f"{child.get('message')} {child.text}" for child in case)
    assert ("why <so>" in said) == bool(tags)


def test_nan_is_a_failure_that_says_nan(parity_report: ParityReport) -> None:
    (case,) = suite_of(parity_report, NAN).iter("testcase")
    assert case.get("name") == "unet, seed 0, latents, step 8"
    assert "relative L2: nan" in case.findtext("failure", "")


def test_an_engine_without_rows_has_not_passed(parity_report: ParityReport) -> None:
    for unavailable, reason in (("no Mac", "no Mac"), ("", "nothing was compared")):
        (skipped,) = suite_of(parity_report, unavailable=unavailable).iter("skipped")
        assert skipped.get("message") == reason


def test_properties_say_what_was_checked_and_where(parity_report: ParityReport) -> None:
    suite = read(parity_report)[1]
    told = {found.get("name"): found.get("value") for found in suite.iter("property")}
    assert told["bundle"] == "bundles/sdxl/openvino"
    assert told["reference"] == "goldens/sdxl-8-steps"
    assert told["machine: processor"] == "AMD EPYC 9R14"
    assert told["engine: openvino"] == "2026.4.1"
    assert told["environment: OMP_NUM_THREADS"] == "1"
    assert told["execution: openvino precision"] == (
        "bf16 (text_encoder, text_encoder_2, unet); fp32 (vae_decoder)"
    )


@given(reason=st.text(st.characters(codec=None, categories=None)))
def test_any_reason_is_xml(parity_report: ParityReport, reason: str) -> None:
    suite = suite_of(parity_report, replace(NAN, reason=reason, case=reason))
    (failure,) = suite.iter("failure")
    assert failure.get("message") is not None
