"""The pictures of a dataset, one by one: numbered and seeded from the input alone."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never, final

from triptych.errors import UsageError
from triptych.workflows.generation.queries import Query

SeedRule: TypeAlias = Literal["picture", "image", "fixed"]
"""picture: a seed of its own for every picture, from the base seed, the id and n. image: the base
seed and the number of the image, so that all prompts start from the same noise. fixed: the base
seed for every picture."""

_FIRST_SEED_TOO_GREAT = 2**63


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One run of the sampler: one picture at every saved step.

    Attributes:
        id: the query's.
        query_index: the query, from 0 in the whole input.
        prompt_index: the prompt, from 0 in its query.
        image_index: the image, from 0 of its prompt.
        n: the picture among all of its id in the whole input, from 0; part of the file's name.
        prompt: what to draw.
        seed: of its noise.
    """

    id: str
    query_index: int
    prompt_index: int
    image_index: int
    n: int
    prompt: str
    seed: int


def plan_units(
    queries: Sequence[Query],
    *,
    num_prompts: int,
    images_per_prompt: int,
    seed_rule: SeedRule = "picture",
    base_seed: int = 0,
) -> tuple[Unit, ...]:
    """Every picture of the whole input, prompt by prompt and image by image.

    An id's pictures are counted over all of its queries. So a picture's number and seed depend on
    the input alone: not on what is on the disk, which part is run, or where it was stopped.

    Args:
        queries: the whole input, not a part of it.
        num_prompts: of each query, the first so many prompts; a query with fewer has fewer.
        images_per_prompt: pictures for each prompt.
        seed_rule: which noise each starts from.
        base_seed: what the rule starts from, 0 to 2**63 - 1.

    Raises:
        UsageError: no prompts or images are wanted, or a seed outside that range.
    """
    for name, count in (("num_prompts", num_prompts), ("images_per_prompt", images_per_prompt)):
        if count < 1:
            raise UsageError(f"{name}: got {count}, want at least 1.")
    if not 0 <= base_seed <= _FIRST_SEED_TOO_GREAT - images_per_prompt:
        raise UsageError(f"base seed: got {base_seed}, want 0 to 2**63 - 1 for every image.")
    units: list[Unit] = []
    counted: Counter[str] = Counter()
    for query_index, query in enumerate(queries):
        for prompt_index, prompt in enumerate(query.prompts[:num_prompts]):
            for image_index in range(images_per_prompt):
                n = counted[query.id]
                counted[query.id] += 1
                units.append(
                    Unit(
                        id=query.id,
                        query_index=query_index,
                        prompt_index=prompt_index,
                        image_index=image_index,
                        n=n,
                        prompt=prompt,
                        seed=_seed(
                            seed_rule, base_seed, query_id=query.id, n=n, image_index=image_index
                        ),
                    )
                )
    return tuple(units)


def _seed(rule: SeedRule, base_seed: int, *, query_id: str, n: int, image_index: int) -> int:
    match rule:
        case "picture":
            # No id holds a zero character, so that no two pictures give the same text. The rule
            # is part of every dataset made with it: never change it.
            text = f"{base_seed}\0{query_id}\0{n}"
            return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        case "image":
            return base_seed + image_index
        case "fixed":
            return base_seed
        case _:
            assert_never(rule)
