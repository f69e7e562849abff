"""A report as one JSON document: written, read back, and the schema that it follows."""

import math
from dataclasses import fields, is_dataclass
from pathlib import Path

import msgspec

from triptych.errors import BrokenInputError
from triptych.parity.report import SCHEMA_VERSION, ParityReport

NOT_FINITE = ("nan", "inf", "-inf")
"""JSON (RFC 8259) has no NaN and no infinity: they are these words, which float() reads back; null
would lose which of them it was."""


def report_document(report: object) -> object:
    """A report, or any of its parts, as plain values that strict JSON can hold."""
    if isinstance(report, float) and not math.isfinite(report):
        return str(report)
    if is_dataclass(report) and not isinstance(report, type):
        return {
            field.name: report_document(getattr(report, field.name)) for field in fields(report)
        }
    if isinstance(report, dict):
        return {name: report_document(value) for name, value in report.items()}
    if isinstance(report, tuple | list):
        return [report_document(value) for value in report]
    return report


def read_report(path: Path) -> ParityReport:
    """Read what `check --json` wrote.

    Raises:
        BrokenInputError: it is no such document, or of a newer schema.
    """
    try:
        content = path.read_bytes()
        report = msgspec.json.decode(content, type=ParityReport, strict=False)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenInputError(f"{path}: got {error}, want a report of check --json.") from error
    if report.schema_version > SCHEMA_VERSION:
        raise BrokenInputError(
            f"{path}: got schema version {report.schema_version}, want {SCHEMA_VERSION} or older. "
            "Upgrade triptych."
        )
    return report


def report_schema() -> dict[str, object]:
    """The JSON schema of a report, draft 2020-12."""
    schema = msgspec.json.schema(ParityReport)
    number = {"anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]}
    with_words: dict[str, object] = _with_words(schema)  # type: ignore[assignment]  # a dict stays one
    definitions: dict[str, object] = with_words["$defs"]  # type: ignore[assignment]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "triptych check --json",
        **with_words,
        "$defs": {**definitions, "Number": number},
    }


def _with_words(schema: object) -> object:
    """Wherever a number may stand, a word for one that is not finite may stand too."""
    if isinstance(schema, dict):
        if schema.get("type") == "number":
            rest = {name: value for name, value in schema.items() if name != "type"}
            return {**rest, "$ref": "#/$defs/Number"}
        return {name: _with_words(value) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_with_words(value) for value in schema]
    return schema
