"""The page as a document: everything of the report is in it, and nothing of it is obeyed."""

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from html.parser import HTMLParser

import pytest
from typing_extensions import override

from triptych.parity.html.evidence import rows_table, worst_table
from triptych.parity.html.page import report_page
from triptych.parity.report import CandidateReport, Hint, ParityReport, Row
from triptych.types import ImagePixels, Verdict

MARKUP = '<img src=x onerror="alert(1)">&amp;'
VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """Collects text and tags, and refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    @override
    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_it_is_well_formed_and_every_name_is_unique(
    parity_report: ParityReport, report_pictures: Mapping[str, Mapping[int, ImagePixels]]
) -> None:
    reader = read(report_page(parity_report, pictures=report_pictures))
    names = [found["id"] for _, found in reader.tags if "id" in found]
    assert len(names) == len(set(names))
    for _, found in reader.tags:
        assert set((found.get("aria-labelledby") or "").split()) <= set(names)
        assert found.get("for") in (None, *names)
    headings = [tag for tag, _ in reader.tags if tag in ("h1", "h2")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_it_allows_itself_no_connection(
    parity_report: ParityReport, report_pictures: Mapping[str, Mapping[int, ImagePixels]]
) -> None:
    page = report_page(parity_report, pictures=report_pictures)
    reader = read(page)
    (policy,) = (
        found["content"] or ""
        for _, found in reader.tags
        if found.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    for tag, found in reader.tags:
        assert tag not in ("iframe", "object", "base", "form")
        for name in ("src", "href"):
            assert (found.get(name) or "data:").startswith("data:")
    assert "url(" not in page
    assert "@import" not in page


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("passed", "✓ Passed"),
        ("warned", "▲ Warned"),
        ("failed", "✗ Failed"),
        ("not_run", "○ Not run"),
    ],
)
def test_the_verdict_is_a_word_and_a_symbol(
    parity_report: ParityReport, verdict: Verdict, words: str
) -> None:
    page = report_page(replace(parity_report, verdict=verdict))
    heading = page[page.index("<h1>") : page.index("</h1>")]
    assert " ".join("".join(read(heading + "</h1>").text).split()) == words


def test_everything_of_a_report_is_there(parity_report: ParityReport) -> None:
    shown = "".join(read(report_page(parity_report)).text)
    for word in (
        "golden goldens/sdxl-8-steps",
        "AMD EPYC 9R14",
        "Intel(R) Xeon(R) Gold 6148",
        "2026-09-21 09:41:00 UTC",
        "precision unet: declared fp32, ran bf16",
        "The free run first diverges at step 1",
        "OpenVINO computes in bfloat16 where the processor can",
        "triptych check bundles/sdxl/openvino --reference sdxl --precision fp32",
        "Could not run here: coreml: got Linux, want macOS.",
        "openvino stands apart: 2e4 times as far",
        "initial latents",
        "sha256 4f1c0d0e",
        "≠ avx512_bf16",
        "≠ OMP_NUM_THREADS",
        "Floors measured: fp32, fp16, bf16",
        "triptych check bundles/sdxl --prompt '<script>alert(\"case\")</script>' --json",
    ):
        assert word in shown, word
    assert "≠ avx2" not in shown
    assert "≠ numpy" not in shown


def test_a_mismatch_of_precision_is_marked(parity_report: ParityReport) -> None:
    page = report_page(parity_report)
    assert page.count('<strong class="failed-text">✗ bf16</strong>') == 3
    assert "✗ fp32" not in page


def test_the_limit_that_would_pass_is_there_and_none_for_nan(parity_report: ParityReport) -> None:
    row = Row(stage="component", component="unet", case="a", precision="fp32", limit=1e-5)
    far = lone(parity_report, replace(row, rel_l2=3.4e-3, verdict="failed"))
    assert far.count('<td class="number">3.4e-3</td>') == 2
    broken = lone(parity_report, replace(row, rel_l2=math.nan, verdict="failed"))
    assert '<span class="failed-text">none</span>' in broken
    assert '<strong class="failed-text">NaN</strong>' in broken


def lone(report: ParityReport, row: Row) -> str:
    """The page of a report with this row alone."""
    candidate = CandidateReport(runtime="x", bundle="y", format="onnx", rows=(row,))
    return report_page(replace(report, candidates=(candidate,)))


FULL_ROW = Row(
    stage="free_running",
    component="unet",
    case="a",
    tensor="latents",
    branch="guided",
    step=2,
    timestep=3.0,
    sigma=4.0,
    precision="fp32",
    ran="bf16",
    shape=(7, 77),
    size=539,
    finite_actual=True,
    finite_expected=True,
    rel_l2=5.0,
    cosine=6.0,
    psnr_db=7.0,
    ssim=8.0,
    max_abs=9.0,
    max_abs_index=(6, 66),
    p99_abs=10.0,
    rms_expected=11.0,
    bias=12.0,
    denoised_rel_l2=13.0,
    gain=14.0,
    error_cosine=15.0,
    additive_rel_l2=16.0,
    limit=17.0,
    warn_limit=18.0,
    limit_source="floor",
    floor=19.0,
    ratio=20.0,
    verdict="warned",
    reason="why",
    feed_sha256="5d" * 32,
    actual_sha256="a7" * 32,
)
OTHERS = {
    "stage": "image",
    "component": "vae_decoder",
    "case": "b",
    "precision": "fp16",
    "metrics": {"<mine>:lpips": 0.25},
}
"""For fields that every row has."""


def test_what_stopped_a_run_is_said_in_words(parity_report: ParityReport) -> None:
    stop = replace(FULL_ROW, stage="finiteness", step=6, case="its <own> run", verdict="failed")
    page = lone(parity_report, stop)
    assert '<p class="failed-text">✗ Stopped at step 6: its &lt;own&gt; run</p>' in page
    read(page)


def test_a_stage_that_passed_without_numbers_is_one_line() -> None:
    plain = Row(stage="finiteness", component="unet", case="every feed", precision="fp32")
    passed = [
        replace(plain, component=name, verdict="passed") for name in ("text_encoder", "vae_decoder")
    ]
    assert worst_table(passed).count("<tr>") == 2
    assert "<td>text_encoder, vae_decoder</td>" in worst_table(passed)
    assert worst_table([*passed, replace(plain, verdict="failed")]).count("<tr>") == 4
    assert worst_table([*passed, replace(plain, verdict="passed", rel_l2=0.0)]).count("<tr>") == 4


@pytest.mark.parametrize("field", fields(Row), ids=lambda field: field.name)
def test_every_field_of_a_row_is_shown(field: Field[object]) -> None:
    other = OTHERS.get(field.name, field.default)
    changed = replace(FULL_ROW, **{field.name: other})  # type: ignore[arg-type]  # fields by name
    assert rows_table([changed]) != rows_table([FULL_ROW])


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (False, True, "not candidate"),
        (True, False, "not reference"),
        (False, False, "not candidate and reference"),
    ],
)
def test_who_is_not_finite_is_said(*, actual: bool, expected: bool, words: str) -> None:
    row = replace(FULL_ROW, finite_actual=actual, finite_expected=expected)
    assert f'<strong class="failed-text">{words}</strong>' in rows_table([row])


def test_nothing_in_a_report_is_obeyed(parity_report: ParityReport) -> None:
    row = Row(
        stage="free_running",
        component="unet",
        case=MARKUP,
        tensor=MARKUP,
        step=1,
        precision="fp32",
        ran=MARKUP,
        rel_l2=1.0,
        reason=MARKUP,
        feed_sha256=MARKUP,
        actual_sha256=MARKUP,
    )
    hint = Hint(cause=MARKUP, evidence=MARKUP, confirm=MARKUP)
    execution = next(iter(parity_report.candidates[1].executions.values()))
    execution = replace(execution, version=MARKUP, device=MARKUP, precision=MARKUP)
    candidate = replace(
        parity_report.candidates[1],
        runtime=MARKUP,
        bundle=MARKUP,
        rows=(row,),
        hints=(hint,),
        unavailable=MARKUP,
        executions={"unet": replace(execution, runtime=MARKUP, details={MARKUP: MARKUP})},
    )
    machine = replace(
        parity_report.fingerprint,
        processor=MARKUP,
        system=MARKUP,
        packages={MARKUP: MARKUP},
        environment={MARKUP: MARKUP},
    )
    assert parity_report.reference is not None
    assert parity_report.odd_one_out is not None
    report = replace(
        parity_report,
        triptych=MARKUP,
        created=MARKUP,
        command=(MARKUP,),
        reference=replace(
            parity_report.reference, name=MARKUP, execution=execution, floors=(MARKUP,)
        ),
        fingerprint=machine,
        settings={MARKUP: MARKUP},
        preconditions={MARKUP: MARKUP},
        candidates=(candidate,),
        odd_one_out=replace(parity_report.odd_one_out, participants=(MARKUP, "b", "c"), odd=MARKUP),
    )
    page = report_page(report)
    assert "<img" not in page
    assert page.count("<script") == 1
    assert "onerror=&quot;alert(1)&quot;&gt;&amp;amp;" in page
    read(page)


def test_without_anything_measured_there_is_a_page(parity_report: ParityReport) -> None:
    absent = parity_report.candidates[-1]
    page = report_page(replace(parity_report, candidates=(absent,), odd_one_out=None, command=()))
    for title in ("Step by step", "Pictures", "Odd one out", "To repeat it"):
        assert title not in page
    assert "Could not run here" in page
    read(page)
    read(report_page(replace(parity_report, candidates=(), reference=None, settings={})))
