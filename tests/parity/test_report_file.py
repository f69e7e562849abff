"""A report as a file: strict JSON, of the published schema, and the same report when read back."""

import json
import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import cast, get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import BrokenInputError
from triptych.parity.report import STAGES, Branch, LimitSource, ParityReport, Row
from triptych.parity.report_file import read_report, report_document, report_schema
from triptych.types import PRECISIONS, ComponentName, Verdict

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(report_schema())

NUMBERS = st.none() | st.floats()
TEXTS = st.text() | st.sampled_from(["nan", "null", "true", "1.5", ""])
ROWS = st.fixed_dictionaries(
    {
        "stage": st.sampled_from(STAGES),
        "component": st.sampled_from(get_args(ComponentName)),
        "case": TEXTS,
        "tensor": TEXTS,
        "branch": st.none() | st.sampled_from(get_args(Branch)),
        "step": st.none() | st.integers(0, 1000),
        "precision": st.sampled_from(PRECISIONS),
        "ran": TEXTS,
        "reason": TEXTS,
        "shape": st.lists(st.integers(1, 2**40)).map(tuple),
        "size": st.integers(0, 2**60),
        "finite_actual": st.none() | st.booleans(),
        "finite_expected": st.none() | st.booleans(),
        "max_abs_index": st.lists(st.integers(0, 2**40)).map(tuple),
        "limit_source": st.none() | st.sampled_from(get_args(LimitSource)),
        "verdict": st.sampled_from(get_args(Verdict)),
        **{field.name: NUMBERS for field in fields(Row) if field.type == float | None},
    }
)
"""What to make rows of, any number and any text among it."""


def strict_json(report: ParityReport) -> str:
    return json.dumps(report_document(report), allow_nan=False)


def test_the_published_schema_is_what_a_report_follows() -> None:
    """After a change: write `report_schema()` there, as below."""
    wanted = json.dumps(report_schema(), indent=2) + "\n"
    assert PUBLISHED.read_text(encoding="utf-8") == wanted


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())


def with_rows(report: ParityReport, *rows: Row) -> ParityReport:
    return replace(report, candidates=(replace(report.candidates[0], rows=rows),))


@settings(max_examples=50, deadline=None)
@given(found=st.lists(ROWS, max_size=2))
def test_any_report_follows_the_schema_and_comes_back(
    parity_report: ParityReport, found: list[dict[str, object]]
) -> None:
    report = with_rows(parity_report, *(Row(**row) for row in found))  # type: ignore[arg-type]  # fields by name
    text = strict_json(report)
    VALIDATOR.validate(json.loads(text))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        file.write_text(text, encoding="utf-8")
        assert repr(read_report(file)) == repr(report)  # NaN is not equal to itself; its repr is


def test_a_whole_report_comes_back(parity_report: ParityReport, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(strict_json(parity_report), encoding="utf-8")
    assert repr(read_report(file)) == repr(parity_report)


@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_what_is_not_finite_is_a_word_that_the_schema_knows(
    parity_report: ParityReport, value: float, word: str
) -> None:
    row = Row(stage="component", component="unet", case="a", precision="fp32", rel_l2=value)
    document = json.loads(strict_json(with_rows(parity_report, row)))
    found = document["candidates"][0]["rows"][0]
    assert found["rel_l2"] == word
    assert VALIDATOR.is_valid(document)
    for wrong in ("NaN", "Infinity", "1.0", True):
        found["rel_l2"] = wrong
        assert not VALIDATOR.is_valid(document), wrong


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"verdict": "fine"}, "verdict"),
        ({"candidates": [{"runtime": "x"}]}, "candidates"),
        ({"schema_version": 99}, "schema version 99"),
        ({"fingerprint": None}, "fingerprint"),
    ],
)
def test_what_is_no_report_is_an_error_that_names_the_file(
    parity_report: ParityReport, tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    document = cast(dict[str, object], report_document(parity_report))
    file = tmp_path / "report.json"
    file.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    with pytest.raises(BrokenInputError, match=word) as caught:
        read_report(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_broken_files_are_errors(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(BrokenInputError):
        read_report(file)
    with pytest.raises(BrokenInputError):
        read_report(tmp_path / "nothing.json")
