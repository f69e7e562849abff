"""triptych compare."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import print_json, say
from triptych.cli.options import JsonOption

if TYPE_CHECKING:
    from triptych.workflows.compare import ComparedDocuments

_MOST_RESULTS = 20
"""Rows of two checks that came out otherwise and are printed; --json has them all."""


def compare(
    first: Annotated[Path, typer.Argument(help="What check --json or doctor --json printed.")],
    second: Annotated[Path, typer.Argument(help="Another; or a golden's manifest.json.")],
    *,
    json: JsonOption = False,
) -> None:
    """Say what differs between two checks or machines, what changes numbers most likely first.

    Exit codes, as diff's: 0 nothing differs, 1 something does. 3 a file is no such document, or
    the two have nothing in common.
    """
    from triptych.workflows.compare import compare_documents

    compared = compare_documents(first, second)
    if json:
        print_json(
            {
                "first": {"path": str(first), "kind": compared.first_kind},
                "second": {"path": str(second), "kind": compared.second_kind},
                "num_shared": compared.num_shared,
                "differences": [asdict(found) for found in compared.differences],
            }
        )
    else:
        _print_differences(compared)
    if compared.differences:
        raise typer.Exit(1)


def _print_differences(compared: "ComparedDocuments") -> None:
    """One line each: rank, kind, name, both values, and why it matters."""
    if not compared.differences:
        say(f"no differences in the {compared.num_shared} facts and rows that both tell")
        return
    results = [found for found in compared.differences if found.kind == "result"]
    for found in compared.differences:
        if found not in results[_MOST_RESULTS:]:
            say(
                f"{found.rank} {found.kind} {found.name}: {found.first} → {found.second}  "
                f"({found.why})"
            )
    if len(results) > _MOST_RESULTS:
        say(f"and {len(results) - _MOST_RESULTS} more rows; --json prints them all")
