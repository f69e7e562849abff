"""Prompts in JSON: a list of objects, or an object a line."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from triptych.errors import BrokenInputError
from triptych.workflows.generation.query_items import Item, ItemFile, Problem, type_name

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def items_from_json(text: str, *, path: Path) -> ItemFile:
    """The objects of a list. They are decoded one by one, so that each has the line it starts on.

    Raises:
        BrokenInputError: it is not JSON, or not a list; with line and column.
    """
    values: list[tuple[int, object]] = []
    position = _after_mark(text, _after_blank(text, 0), mark="[", path=path)
    closed = text.startswith("]", position)
    while not closed:
        value, end = _decoded(text, position, path=path)
        values.append((position, value))
        position = _after_blank(text, end)
        closed = text.startswith("]", position)
        if not closed:
            position = _after_mark(text, position, mark=",", path=path)
    position = _after_blank(text, position + 1)
    if position < len(text):
        raise _broken(text, position, got=_next(text, position), want="nothing after ]", path=path)
    return _objects(_with_lines(text, values), problems=())


def items_from_json_lines(text: str) -> ItemFile:
    """An object a line; blank lines count for nothing. Each broken line is a problem of its own."""
    values: list[tuple[int, object]] = []
    problems: list[Problem] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            values.append((line, _DECODER.decode(content)))
        except json.JSONDecodeError as error:
            problems.append(Problem(line, f"{error.msg} at column {error.colno}, want an object"))
        except (ValueError, RecursionError) as error:  # as in _decoded
            problems.append(Problem(line, f"{error}, want an object"))
    return _objects(values, problems=problems)


def _objects(values: Iterable[tuple[int, object]], *, problems: Iterable[Problem]) -> ItemFile:
    """The objects among the values; the others are problems."""
    items: list[Item] = []
    others: list[Problem] = []
    for line, value in values:
        if isinstance(value, dict):
            items.append(Item(line=line, fields=value))
        else:
            others.append(Problem(line, f"{type_name(value)}, want an object"))
    return ItemFile(items=tuple(items), problems=(*problems, *others))


def _with_lines(text: str, values: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Lines instead of positions, which must ascend."""
    line, counted_to = 1, 0
    for position, value in values:
        line += text.count("\n", counted_to, position)
        counted_to = position
        yield line, value


def _after_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _after_mark(text: str, position: int, *, mark: str, path: Path) -> int:
    if text.startswith(mark, position):
        return _after_blank(text, position + 1)
    want = "[, where a list of objects begins" if mark == "[" else f"{mark} or ]"
    raise _broken(text, position, got=_next(text, position), want=want, path=path)


def _decoded(text: str, position: int, *, path: Path) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        got = error.msg if error.pos < len(text) else _next(text, error.pos)
        raise _broken(text, error.pos, got=got, want="JSON", path=path) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; 10,000 brackets
        raise _broken(text, position, got=str(error), want="an object", path=path) from error


def _next(text: str, position: int) -> str:
    return repr(text[position]) if position < len(text) else "the end of the file"


def _broken(text: str, position: int, *, got: str, want: str, path: Path) -> BrokenInputError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    hint = "" if position < len(text) else " The file may have been cut off."
    return BrokenInputError(f"{path} line {line}, column {column}: got {got}, want {want}.{hint}")
