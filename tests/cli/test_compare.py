"""triptych compare, as a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.parity.fingerprint import take_fingerprint
from triptych.parity.report import CandidateReport, ParityReport, Row
from triptych.parity.report_file import report_document

HERE = {"processor": "EPYC", "cpu_features": ["avx2", "avx512_bf16"], "python": "3.11"}
THERE = {"processor": "EPYC", "cpu_features": ["avx2"], "python": "3.11"}


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "triptych.cli", "compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def write(file: Path, document: object) -> Path:
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write(tmp_path / "a.json", {"fingerprint": THERE}),
        write(tmp_path / "b.json", {"fingerprint": HERE}),
    )


def test_a_difference_is_a_line_and_exit_code_1(machines: tuple[Path, Path]) -> None:
    done = compare(*machines)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == (
        "1 machine avx512_bf16: absent → there  (with it, engines compute in bfloat16 unasked)\n"
    )


def test_no_difference_is_exit_code_0(machines: tuple[Path, Path]) -> None:
    done = compare(machines[0], machines[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no differences in the 10 facts and rows that both tell\n"


def test_json_is_one_document(machines: tuple[Path, Path]) -> None:
    done = compare(*machines, "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["first"] == {"path": str(machines[0]), "kind": "machine"}
    (found,) = document["differences"]
    assert (found["rank"], found["kind"], found["name"]) == (1, "machine", "avx512_bf16")
    assert (found["first"], found["second"]) == ("absent", "there")


def test_a_broken_file_is_exit_code_3(tmp_path: Path, machines: tuple[Path, Path]) -> None:
    done = compare(machines[0], write(tmp_path / "c.json", []))
    assert (done.returncode, done.stdout) == (3, "")
    assert "got a list, want a JSON object" in done.stderr


def test_many_rows_are_counted_not_printed(tmp_path: Path) -> None:
    def report(error: float) -> object:
        rows = tuple(
            Row(
                stage="component",
                component="unet",
                case=f"t={place}",
                precision="fp32",
                rel_l2=error * place,
            )
            for place in range(1, 31)
        )
        return report_document(
            ParityReport(
                triptych="0",
                created="now",
                reference=None,
                fingerprint=take_fingerprint(),
                settings={},
                candidates=(CandidateReport(runtime="x", bundle="y", format="onnx", rows=rows),),
                verdict="passed",
            )
        )

    files = [write(tmp_path / f"{error}.json", report(error)) for error in (1e-6, 1e-5)]
    done = compare(*files)
    lines = done.stdout.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more rows; --json prints them all"
    assert "10 times further from the reference" in lines[0]
    assert len(json.loads(compare(*files, "--json").stdout)["differences"]) == 30
