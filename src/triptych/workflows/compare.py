"""Two documents side by side: reports, machines or goldens, and what differs between them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

from triptych.errors import BrokenInputError
from triptych.parity.differences import (
    Difference,
    Evidence,
    count_shared,
    find_differences,
    report_results,
)
from triptych.parity.facts import document_facts, golden_facts, reference_facts, report_facts
from triptych.parity.report_file import read_report

DocumentKind: TypeAlias = Literal["report", "machine", "golden"]
"""report: of check --json. machine: of doctor --json, or any fingerprint. golden: its manifest."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedDocuments:
    """Two documents and their differences.

    Attributes:
        first: one file.
        first_kind: what it is.
        second: the other file.
        second_kind: what that is.
        num_shared: facts and rows that both tell.
        differences: ranked, most likely to change numbers first; empty for none.
    """

    first: Path
    first_kind: DocumentKind
    second: Path
    second_kind: DocumentKind
    num_shared: int
    differences: tuple[Difference, ...]


def compare_documents(first: Path, second: Path) -> ComparedDocuments:
    """Read two files and rank what differs between them.

    Raises:
        BrokenInputError: one of them is no such document, or they have nothing in common.
    """
    first_kind, before = read_evidence(first)
    second_kind, after = read_evidence(second)
    num_shared = count_shared(before, after)
    if not num_shared:
        raise BrokenInputError(
            f"{second}: got a {second_kind} that tells nothing that the {first_kind} {first} "
            "tells, too, want something to compare."
        )
    return ComparedDocuments(
        first=first,
        first_kind=first_kind,
        second=second,
        second_kind=second_kind,
        num_shared=num_shared,
        differences=find_differences(before, after),
    )


def read_evidence(path: Path) -> tuple[DocumentKind, Evidence]:
    """What a file tells, whichever of the documents it is.

    Raises:
        BrokenInputError: it is none of them.
    """
    document = _read_object(path)
    if "candidates" in document:
        report = read_report(path)
        return "report", Evidence(
            facts=report_facts(report),
            reference=reference_facts(report),
            results=report_results(report),
        )
    facts = document_facts(document)
    if not any(facts.values()):
        raise BrokenInputError(
            f"{path}: got an object with {', '.join(sorted(document)) or 'nothing in it'}, want "
            "what check --json or doctor --json prints, or a golden's manifest.json."
        )
    kind: DocumentKind = "golden" if "preconditions" in document else "machine"
    return kind, Evidence(facts=facts, reference=golden_facts(document))


def _read_object(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenInputError(f"{path}: got {error}, want a JSON document.") from error
    if not isinstance(document, dict):
        raise BrokenInputError(f"{path}: got a {type(document).__name__}, want a JSON object.")
    return document
