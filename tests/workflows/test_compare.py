"""Two files: which documents they are, and that nothing in common is not taken for equality."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from triptych.errors import BrokenInputError
from triptych.parity.fingerprint import Fingerprint, take_fingerprint
from triptych.parity.report import CandidateReport, ParityReport, Row
from triptych.parity.report_file import report_document
from triptych.workflows.compare import compare_documents
from triptych.workflows.doctor import diagnose

MACHINE = take_fingerprint()
REPORT = ParityReport(
    triptych="0.1.0",
    created="2026-09-21T09:41:00+00:00",
    reference=None,
    fingerprint=MACHINE,
    settings={"seeds": (0,)},
    candidates=(
        CandidateReport(
            runtime="openvino",
            bundle="b",
            format="openvino",
            rows=(Row(stage="component", component="unet", case="t=1", precision="fp32"),),
        ),
    ),
    verdict="passed",
)


def write(file: Path, document: object) -> Path:
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def of_golden(machine: Fingerprint) -> dict[str, object]:
    return {"fingerprint": asdict(machine), "preconditions": {"timesteps": [1.0]}}


@pytest.mark.slow  # doctor opens every engine
def test_each_document_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    files = {
        "report": write(tmp_path / "a.json", report_document(REPORT)),
        "machine": write(tmp_path / "b.json", diagnose().to_json()),
        "golden": write(tmp_path / "c.json", of_golden(MACHINE)),
    }
    for first_kind, first in files.items():
        for second_kind, second in files.items():
            compared = compare_documents(first, second)
            assert (compared.first_kind, compared.second_kind) == (first_kind, second_kind)
            assert compared.num_shared > 5
            assert compared.differences == ()


def test_what_differs_is_found_across_documents(tmp_path: Path) -> None:
    other = replace(MACHINE, processor="another")
    compared = compare_documents(
        write(tmp_path / "a.json", report_document(REPORT)),
        write(tmp_path / "b.json", of_golden(other)),
    )
    (found,) = compared.differences
    assert (found.rank, found.kind, found.name) == (1, "machine", "processor")
    assert found.second == "another"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{", b"\xff", b"{}", b'{"verdict": "passed"}', b"[" * 100_000]
)
def test_a_file_that_is_no_such_document_is_an_error(tmp_path: Path, content: bytes) -> None:
    good = write(tmp_path / "good.json", of_golden(MACHINE))
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    for files in ((good, bad), (bad, good)):
        with pytest.raises(BrokenInputError) as caught:
            compare_documents(*files)
        assert str(caught.value).startswith(f"{bad}: got ")


def test_a_broken_report_is_not_taken_for_a_machine(tmp_path: Path) -> None:
    document = report_document(REPORT)
    assert isinstance(document, dict)
    broken = write(tmp_path / "a.json", {**document, "verdict": "fine"})
    with pytest.raises(BrokenInputError, match="verdict"):
        compare_documents(broken, broken)


def test_nothing_in_common_is_an_error_not_equality(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", {"fingerprint": {"python": "3.11"}})
    second = write(tmp_path / "b.json", {"preconditions": {"timesteps": [1]}})
    with pytest.raises(BrokenInputError, match="tells nothing that the machine"):
        compare_documents(first, second)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match=r"nothing\.json"):
        compare_documents(tmp_path / "nothing.json", tmp_path / "nothing.json")
