"""What a file of prompts holds before it is judged: objects or rows, each with its line."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.errors import BrokenInputError

_BOM = b"\xef\xbb\xbf"
_MOST_LISTED = 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One object of a file, or one row.

    Attributes:
        line: where it starts, from 1.
        fields: its values by key; of any JSON type, but text alone in CSV.
    """

    line: int
    fields: Mapping[str, object]


@final
@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong with a file, and where.

    Attributes:
        line: from 1.
        got: what is there, and what should be.
    """

    line: int
    got: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFile:
    """What was read from one file.

    Attributes:
        items: those that could be read, in order.
        problems: those that could not.
        by_row: whether an item holds one prompt of its id, instead of all of them.
    """

    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    by_row: bool = False


def read_text(path: Path) -> str:
    """A file's text; a byte order mark is not part of it.

    Raises:
        BrokenInputError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise BrokenInputError(f"{path}: got {error.strerror}, want a file of prompts.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        line_start = content.rfind(b"\n", 0, error.start) + 1
        column = len(content[line_start : error.start].decode("utf-8")) + 1
        raise BrokenInputError(
            f"{path} line {line}, column {column}: got byte 0x{content[error.start]:02x}, want "
            "UTF-8. Save the file as UTF-8."
        ) from error


def check_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Refuse a file with problems: all of them at once, or the first of very many.

    Raises:
        BrokenInputError: there are problems.
    """
    lines = [f"line {problem.line}: got {problem.got}" for problem in sorted(problems)]
    if lines:
        raise BrokenInputError(f"{path}:\n{listed(lines)}")


def listed(lines: Iterable[str]) -> str:
    """Lines under each other; of many the first, and how many more there are."""
    every = list(lines)
    more = [f"and {len(every) - _MOST_LISTED} more"] if len(every) > _MOST_LISTED else []
    return "\n".join(f"  {line}" for line in (*every[:_MOST_LISTED], *more))


def type_name(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"
