"""The verdict of all rows, the worst of each kind, and a document that any JSON parser reads."""

import json
import math

import numpy as np
import pytest

from triptych.parity.compare import Comparison, compare
from triptych.parity.report import ParityReport, Row, Stage, worst_rows
from triptych.runtimes.base import Execution
from triptych.types import ComponentName, Verdict

REFERENCE = Execution(runtime="pytorch", version="2", device="cpu", precision="fp32")


def distance(error: float) -> Comparison:
    expected = np.ones((2, 3), np.float32)
    return compare(expected + np.float32(error), expected, component="unet", tensor="noise_pred")


def row(
    verdict: Verdict = "passed",
    *,
    stage: Stage = "component",
    component: ComponentName = "unet",
    case: str = "t=1",
    comparison: Comparison | None = None,
) -> Row:
    return Row(
        stage=stage,
        component=component,
        case=case,
        precision="fp32",
        limit=1e-5,
        comparison=comparison,
        verdict=verdict,
        reason="" if verdict == "passed" else "why",
    )


def report(*rows: Row) -> ParityReport:
    return ParityReport(
        reference=REFERENCE,
        candidates={"unet": REFERENCE},
        settings={"seeds": [0], "guidance_scale": 5.0},
        rows=rows,
    )


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["passed", "passed"], "passed"),
        (["passed", "not_run"], "not_run"),
        (["not_run"], "not_run"),
        (["not_run", "failed", "passed"], "failed"),
        (["failed"], "failed"),
        ([], "not_run"),  # nothing ran, so nothing has passed
    ],
)
def test_failed_outweighs_not_run_outweighs_passed(
    verdicts: list[Verdict], verdict: Verdict
) -> None:
    assert report(*(row(found) for found in verdicts)).verdict == verdict
    assert report(*(row(found) for found in reversed(verdicts))).verdict == verdict


def strict(document: object) -> object:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(json.dumps(document), parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_is_strict_even_when_numbers_are_not(value: float) -> None:
    found = report(row("failed", comparison=distance(value)), row("not_run"))

    document = strict(found.to_json())

    assert isinstance(document, dict)
    assert document["verdict"] == "failed"
    assert document["rows"][0]["rel_l2"] == "nan"


def test_json_of_a_reference_of_zeros_is_strict() -> None:
    zeros = np.zeros((2, 3), np.float32)
    comparison = compare(zeros + 1, zeros, component="unet", tensor="noise_pred")
    document = strict(report(row("failed", comparison=comparison)).to_json())
    assert isinstance(document, dict)
    assert document["rows"][0]["rel_l2"] == "inf"


def test_json_says_everything_about_a_row() -> None:
    document = strict(report(row(comparison=distance(0.5)), row("not_run")).to_json())
    assert isinstance(document, dict)
    measured, missing = document["rows"]
    assert measured["rel_l2"] == pytest.approx(0.5)
    assert measured["tensor"] == "noise_pred"
    assert measured["shape"] == [2, 3]
    assert (measured["stage"], measured["component"], measured["case"]) == (
        "component",
        "unet",
        "t=1",
    )
    assert (measured["limit"], measured["verdict"], measured["reason"]) == (1e-5, "passed", "")
    assert "rel_l2" not in missing
    assert (missing["verdict"], missing["reason"]) == ("not_run", "why")
    assert document["reference"]["runtime"] == "pytorch"
    assert document["candidates"]["unet"]["precision"] == "fp32"
    assert document["settings"] == {"seeds": [0], "guidance_scale": 5.0}


def test_worst_is_one_row_for_each_stage_and_component() -> None:
    found = worst_rows(
        report(
            row(comparison=distance(1e-7), case="near"),
            row(comparison=distance(1e-6), case="far"),
            row(comparison=distance(0.0), stage="teacher_forced"),
            row("not_run", component="vae_encoder"),
        )
    )
    assert [(one.stage, one.component, one.case) for one in found] == [
        ("component", "unet", "far"),
        ("teacher_forced", "unet", "t=1"),
        ("component", "vae_encoder", "t=1"),
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_worst_goes_by_verdict_first_and_nan_is_furthest(order: int) -> None:
    rows = [
        row("passed", comparison=distance(0.5), case="passed"),
        row("not_run", case="not run"),
        row("failed", comparison=distance(0.1), case="failed"),
    ]
    (worst,) = worst_rows(report(*rows[::order]))
    assert worst.case == "failed"
    rows.append(row("failed", comparison=distance(math.nan), case="nan"))
    (worst,) = worst_rows(report(*rows[::order]))
    assert worst.case == "nan"
