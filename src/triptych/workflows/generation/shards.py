"""The parts that several processes or machines make of one dataset."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError
from triptych.workflows.generation.units import Unit

_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One of several parts of a dataset.

    Attributes:
        index: which, from 0.
        count: how many there are.
    """

    index: int
    count: int


WHOLE = Shard(index=0, count=1)
"""All of a dataset."""


def parse_shard(text: str) -> Shard:
    """A shard as it is written on the command line: 0/2 is the first of two.

    Raises:
        UsageError: it is not two numbers, or there is no such part.
    """
    found = _SHARD.fullmatch(text)
    if found is None:
        raise UsageError(f"shard: got {text!r}, want INDEX/COUNT, such as 0/2 and 1/2.")
    return checked_shard(Shard(index=int(found[1]), count=int(found[2])))


def checked_shard(shard: Shard) -> Shard:
    """The same shard.

    Raises:
        UsageError: there is no such part.
    """
    got = f"shard: got {shard.index}/{shard.count}"
    if shard.count < 1:
        raise UsageError(f"{got}, want at least one part. 0/1 is all.")
    if not 0 <= shard.index < shard.count:
        raise UsageError(f"{got}, want 0 to {shard.count - 1} of {shard.count}: they count from 0.")
    return shard


def shard_units(units: Sequence[Unit], shard: Shard) -> tuple[Unit, ...]:
    """The units of one part, in order; none where there are more parts than prompts.

    Cut between prompts, so that the images of a prompt are made together. The parts differ by one
    prompt at most, and join to the whole.
    """
    by_prompt = itertools.groupby(units, key=lambda unit: (unit.query_index, unit.prompt_index))
    prompts = [tuple(group) for _, group in by_prompt]
    first = shard.index * len(prompts) // shard.count
    last = (shard.index + 1) * len(prompts) // shard.count
    return tuple(itertools.chain.from_iterable(prompts[first:last]))
