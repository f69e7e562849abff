"""Prompts in CSV: a header, then a row for each prompt."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from triptych.errors import BrokenInputError
from triptych.workflows.generation.query_items import Item, ItemFile, Problem


def items_from_csv(text: str, *, path: Path) -> ItemFile:
    """The rows under the header. A quoted cell may go over several lines; blank ones do not count.

    Raises:
        BrokenInputError: quotes that do not close, or a column that is there twice.
    """
    rows = list(_rows(text, path=path))
    header = [name.strip() for name in rows[0][1]] if rows else []
    if len(set(header)) < len(header):
        raise BrokenInputError(
            f"{path} line {rows[0][0]}: got columns {', '.join(header)}, want each once."
        )
    whole = [(line, row) for line, row in rows[1:] if len(row) == len(header)]
    problems = [
        Problem(line, f"{len(row)} columns, want {len(header)} as in the header")
        for line, row in rows[1:]
        if len(row) != len(header)
    ]
    items = [Item(line=line, fields=dict(zip(header, row, strict=True))) for line, row in whole]
    return ItemFile(items=tuple(items), problems=tuple(problems), by_row=True)


def _rows(text: str, *, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row with the line it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BrokenInputError(f"{path} line {line}: got {error}, want CSV.") from error
        if row:
            yield line, row
