"""A report as lines."""

from dataclasses import replace

import pytest

from triptych.parity.lines import candidate_lines, summary_lines, verdict_line
from triptych.parity.report import CandidateReport, ParityReport, Row


def test_one_line_says_what_was_declared_what_ran_how_far_and_by_which_scale() -> None:
    row = Row(
        stage="component",
        component="unet",
        case="t=951",
        tensor="noise_pred",
        precision="bf16",
        ran="bf16",
        rel_l2=4.9e-2,
        floor=1.3e-2,
        ratio=3.77,
        limit=2.6e-2,
        limit_source="floor",
    )
    assert verdict_line(row, declared="fp32") == (
        "component       unet             t=951 noise_pred  declared=fp32  ran=bf16  "
        "rel-L2 4.9e-02  floor(bf16) 1.3e-02  ratio 3.8  limit 2.6e-02 (floor)"
    )


def test_a_floor_names_the_arithmetic_that_it_was_measured_in() -> None:
    row = Row(
        stage="component",
        component="unet",
        case="t=1",
        precision="fp16",
        ran="fp32",
        rel_l2=1e-3,
        floor=1e-3,
    )
    assert "floor(fp16 weights) 1.0e-03" in verdict_line(row, declared="fp32")


def test_numbers_that_are_none_are_words() -> None:
    row = Row(
        stage="free_running",
        component="unet",
        case="t=1",
        step=3,
        precision="fp32",
        rel_l2=float("nan"),
        limit=1e-4,
        limit_source="budget",
        gain=float("inf"),
    )
    line = verdict_line(row, declared="fp32")
    assert "step 3 t=1" in line
    assert "rel-L2 nan" in line
    assert "limit 1.0e-04 (budget)" in line
    assert line.endswith("gain inf")


def passed(stage: str, component: str) -> Row:
    return Row(
        stage=stage,  # type: ignore[arg-type]  # a literal's word
        component=component,  # type: ignore[arg-type]
        case="every feed",
        precision="fp32",
        verdict="passed",
    )


def test_what_passed_without_numbers_is_one_line_for_all() -> None:
    report = CandidateReport(
        runtime="openvino",
        bundle="b",
        format="openvino",
        rows=(passed("finiteness", "unet"), passed("finiteness", "vae_decoder")),
    )
    assert [line for _, line in candidate_lines(report)] == ["finiteness      unet, vae_decoder"]
    one_failed = replace(report.rows[0], verdict="failed", reason="NaN")
    both = replace(report, rows=(one_failed, report.rows[1]))
    assert len(list(candidate_lines(both))) == 2


@pytest.mark.parametrize("step", [None, 3])
def test_the_summary_names_the_limits_that_would_pass(
    parity_report: ParityReport, step: int | None
) -> None:
    candidates = tuple(
        replace(candidate, first_divergent_step=step) for candidate in parity_report.candidates
    )
    lines = list(summary_lines(replace(parity_report, candidates=candidates)))
    measured = [candidate for candidate in candidates if any(row.limit for row in candidate.rows)]
    assert measured
    for candidate in measured:
        assert any(
            line.startswith(f"{candidate.runtime}: smallest limits that would pass: ")
            for line in lines
        )
    told = [line for line in lines if "first divergent step" in line]
    assert len(told) == (0 if step is None else len(candidates))
