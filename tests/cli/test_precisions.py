"""`triptych precisions`, and the page that shows the same table."""

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from triptych.cli.app import app
from triptych.models.precisions import PRECISION_TABLE, PrecisionSupport
from triptych.types import PRECISIONS, FormatName

PAGE = Path(__file__).parents[2] / "docs" / "precisions.md"
FORMATS: tuple[FormatName, ...] = ("onnx", "openvino", "coreml")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["precisions", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_document_is_the_table() -> None:
    document = json.loads(run("--json"))
    assert document["formats"] == list(PRECISION_TABLE)
    assert list(document["precisions"]) == list(PRECISIONS)
    for name, row in document["precisions"].items():
        for to, support in row.items():
            assert PrecisionSupport(**support) == PRECISION_TABLE[to][name]


def test_it_says_what_this_machine_computes_in() -> None:
    engines = {
        (engine["runtime"], engine["device"]): engine
        for engine in json.loads(run("--json"))["engines"]
    }
    assert engines["onnxruntime", "CPUExecutionProvider"]["unasked"] == "float32"
    assert "FP32" in engines["openvino", "CPU"]["offers"]


def test_the_list_names_every_precision() -> None:
    shown = run()
    assert all(name in shown for name in PRECISIONS)
    assert "here: openvino on CPU: " in shown


def test_the_page_has_the_same_table() -> None:
    """After a change: put `page_table()` there."""
    page = PAGE.read_text(encoding="utf-8")
    assert page_table() in page
    assert re.findall(r"```bash\n(.*?)```", page, re.DOTALL) == ["triptych precisions\n"]


def page_table() -> str:
    lines = [f"| | {' | '.join(FORMATS)} |", f"|---|{'---|' * len(FORMATS)}"]
    for name in PRECISIONS:
        cells = [page_cell(PRECISION_TABLE[to][name]) for to in FORMATS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page_cell(support: PrecisionSupport) -> str:
    if not support.exported:
        return f"no: {support.remark}"
    remark = f". {support.remark}" if support.remark else ""
    return f"{support.stored}; computes {support.computed}. By {support.library}{remark}"
