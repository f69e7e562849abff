"""Delta debugging: the smallest part of a list that is still enough."""

import itertools
from collections.abc import Callable, Sequence

_Items = tuple[str, ...]


def smallest_subset(items: Sequence[str], is_enough: Callable[[_Items], bool]) -> _Items:
    """A part of a list that is enough, and of which nothing can be left out.

    One guilty item among n is found in about 2·log2(n) questions; several that must act together
    are found too. Where different parts would be enough, one of them is given.

    Args:
        items: the whole list.
        is_enough: whether a part, in the list's order, is enough. Never asked twice the same.

    Returns:
        The part; empty where the whole list is not enough, or nothing at all is.

    Source: Zeller and Hildebrandt 2002, doi:10.1109/32.988498, algorithm ddmin.
    """
    known: dict[_Items, bool] = {}

    def ask(part: _Items) -> bool:
        if part not in known:
            known[part] = is_enough(part)
        return known[part]

    current = tuple(items)
    if ask(()) or not ask(current):
        return ()
    num_parts = 2
    while len(current) > 1:
        parts = _split(current, num_parts)
        smaller = next((part for part in parts if ask(part)), None)
        if smaller is not None:
            current, num_parts = smaller, 2
            continue
        rests = [tuple(item for item in current if item not in set(part)) for part in parts]
        smaller = next((rest for rest in rests if ask(rest)), None)
        if smaller is not None:
            current, num_parts = smaller, max(num_parts - 1, 2)
        elif num_parts < len(current):
            num_parts = min(2 * num_parts, len(current))
        else:
            break
    return current


def _split(items: _Items, num_parts: int) -> list[_Items]:
    """Into parts as equal as they can be, none of them empty."""
    bounds = [round(index * len(items) / num_parts) for index in range(num_parts + 1)]
    parts = [items[start:stop] for start, stop in itertools.pairwise(bounds)]
    return [part for part in parts if part]
