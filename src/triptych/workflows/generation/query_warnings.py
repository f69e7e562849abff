"""What is worth knowing about queries before thousands of pictures are made of them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from triptych.workflows.generation.names import folded, refused_by_windows, shown
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.query_items import listed


def find_warnings(queries: Sequence[Query], *, num_prompts: int) -> tuple[str, ...]:
    """What may not be meant, with its lines; a text for each kind. None of it stops a run.

    Args:
        queries: the whole input.
        num_prompts: prompts wanted of each query.
    """
    found = {
        "one id in several queries: all are done, the later ones go on counting": _repeated(
            queries
        ),
        "ids that differ only in case or in how accents are written: where a file system takes "
        "them for one name, one's pictures replace the other's": _alike(queries),
        "_ in an id: readers that take the id from between the first two _ of a file's name "
        "get a part of it": _with(queries, lambda query_id: "_" in query_id),
        "a character in an id that Windows refuses in names": _with(queries, refused_by_windows),
        f"fewer than {num_prompts} prompts: those that are there are done": _short(
            queries, num_prompts=num_prompts
        ),
    }
    return tuple(f"{kind}\n{listed(lines)}" for kind, lines in found.items() if lines)


def _repeated(queries: Sequence[Query]) -> list[str]:
    return [
        f"{shown(same[0].id)} on lines {', '.join(str(query.line) for query in same)}"
        for same in _grouped(queries, str).values()
        if len(same) > 1
    ]


def _alike(queries: Sequence[Query]) -> list[str]:
    lines = []
    for group in _grouped(queries, folded).values():
        first_of = {query.id: query for query in reversed(group)}
        if len(first_of) > 1:
            alike = sorted(first_of.values(), key=lambda query: query.line)
            lines.append(", ".join(f"{shown(query.id)} on line {query.line}" for query in alike))
    return lines


def _with(queries: Sequence[Query], is_odd: Callable[[str], bool]) -> list[str]:
    return [f"line {query.line}: {shown(query.id)}" for query in queries if is_odd(query.id)]


def _short(queries: Sequence[Query], *, num_prompts: int) -> list[str]:
    return [
        f"line {query.line}: {shown(query.id)} has {len(query.prompts)}"
        for query in queries
        if len(query.prompts) < num_prompts
    ]


def _grouped(queries: Sequence[Query], key: Callable[[str], str]) -> Mapping[str, Sequence[Query]]:
    groups: defaultdict[str, list[Query]] = defaultdict(list)
    for query in queries:
        groups[key(query.id)].append(query)
    return groups
