"""The prompts of a dataset: an id, and what to make pictures of for it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.errors import BrokenInputError, UsageError
from triptych.workflows.generation.csv_items import items_from_csv
from triptych.workflows.generation.json_items import items_from_json, items_from_json_lines
from triptych.workflows.generation.names import id_problem, is_encodable, shown
from triptych.workflows.generation.query_items import (
    Item,
    ItemFile,
    Problem,
    check_problems,
    read_text,
    type_name,
)

ID_KEYS = ("reference_img_id", "id")
"""Where an id is looked for: the first of them that any item of the file has."""

PROMPTS_KEYS = ("multi_gpt-3.5_opt", "prompts", "prompt")
"""Where the prompts are looked for, in the same way: a list of texts, or one text."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What one id is to have pictures of.

    Attributes:
        id: part of the names of its files. Several queries may have the same.
        prompts: at least one; as they were written.
        line: where it starts in its file, from 1.
    """

    id: str
    prompts: tuple[str, ...]
    line: int


def read_queries(
    path: Path, *, id_key: str | None = None, prompts_key: str | None = None
) -> tuple[Query, ...]:
    """The queries of a file, in order: .json, .jsonl or .ndjson, or .csv.

    JSON is a list of objects, JSON lines an object a line, each with an id, a text or a whole
    number, and its prompts. In CSV a row has one prompt: rows below each other with the same id
    are one query, and a row of that id further down begins another, as a second object does.

    Args:
        path: a file in UTF-8.
        id_key: the key, or column, of the id. None takes the first of `ID_KEYS` in the file.
        prompts_key: that of the prompts. None takes the first of `PROMPTS_KEYS` in the file.

    Raises:
        UsageError: the suffix is of no known format, or both keys are the same.
        BrokenInputError: the file cannot be read, is not UTF-8 or is cut off; or ids that cannot
            be part of a file's name, blank prompts, and values of other types, all named with
            their lines.
    """
    if id_key is not None and id_key == prompts_key:
        raise UsageError(f"keys: got {id_key!r} for the id and the prompts, want one for each.")
    file = _read_items(path)
    check_problems(path, () if file.items else file.problems)
    if not file.items:
        raise BrokenInputError(f"{path}: got no queries, want at least one.")
    own_id_key = _found_key(file.items, (id_key,) if id_key else ID_KEYS, path=path)
    own_prompts_key = _found_key(
        file.items, (prompts_key,) if prompts_key else PROMPTS_KEYS, path=path
    )
    problems = list(file.problems)
    queries = [
        Query(
            id=_id_of(item, own_id_key, problems=problems),
            prompts=_prompts_of(item, own_prompts_key, problems=problems),
            line=item.line,
        )
        for item in file.items
    ]
    check_problems(path, problems)
    return _joined(queries) if file.by_row else tuple(queries)


def _read_items(path: Path) -> ItemFile:
    match path.suffix.lower():
        case ".json":
            return items_from_json(read_text(path), path=path)
        case ".jsonl" | ".ndjson":
            return items_from_json_lines(read_text(path))
        case ".csv":
            return items_from_csv(read_text(path), path=path)
        case suffix:
            raise UsageError(
                f"{path}: got suffix {suffix!r}, want .json, .jsonl, .ndjson or .csv. Rename the "
                "file after what it holds."
            )


def _found_key(items: Sequence[Item], keys: Sequence[str], *, path: Path) -> str:
    """The first key that an item has. One for the whole file: ids of two kinds do not mix."""
    for key in keys:
        if any(key in item.fields for item in items):
            return key
    first = items[0]
    got = ", ".join(shown(key) for key in first.fields) or "none"
    raise BrokenInputError(
        f"{path} line {first.line}: got keys {got}, want {' or '.join(map(repr, keys))}. "
        "Name the key, or the column, that the file has."
    )


def _id_of(item: Item, key: str, *, problems: list[Problem]) -> str:
    value = item.fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        got = f"{type_name(value)} as {key!r}" if key in item.fields else f"no {key!r}"
        problems.append(Problem(item.line, f"{got}, want a text or a whole number"))
        return ""
    if problem := id_problem(value):
        problems.append(Problem(item.line, problem))
    return value


def _prompts_of(item: Item, key: str, *, problems: list[Problem]) -> tuple[str, ...]:
    value = item.fields.get(key)
    prompts: list[object] = value if isinstance(value, list) else [value]
    if key not in item.fields or not prompts:
        got = f"an empty list as {key!r}" if key in item.fields else f"no {key!r}"
        problems.append(Problem(item.line, f"{got}, want at least one prompt"))
    for number, prompt in enumerate(prompts if key in item.fields else (), start=1):
        if problem := _prompt_problem(prompt):
            where = f"prompt {number} of {len(prompts)}"
            problems.append(Problem(item.line, f"{problem} as {where}, want a text"))
    return tuple(prompt for prompt in prompts if isinstance(prompt, str))


def _prompt_problem(prompt: object) -> str:
    if not isinstance(prompt, str):
        return type_name(prompt)
    if not prompt.strip():
        return "nothing but blanks"
    return "" if is_encodable(prompt) else "a text with half a surrogate pair"


def _joined(rows: Sequence[Query]) -> tuple[Query, ...]:
    """Rows below each other with the same id as one query, at the line of the first."""
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.id)]
    return tuple(
        Query(
            id=group[0].id,
            prompts=tuple(itertools.chain.from_iterable(row.prompts for row in group)),
            line=group[0].line,
        )
        for group in groups
    )
