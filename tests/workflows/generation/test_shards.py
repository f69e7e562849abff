import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.shards import Shard, parse_shard, shard_units
from triptych.workflows.generation.units import Unit, plan_units


def units_of(num_queries: int, *, num_prompts: int = 1, images: int = 1) -> tuple[Unit, ...]:
    queries = [
        Query(id=str(number), prompts=("a",) * num_prompts, line=number)
        for number in range(num_queries)
    ]
    return plan_units(queries, num_prompts=num_prompts, images_per_prompt=images)


def ids(units: tuple[Unit, ...], index: int, count: int) -> list[int]:
    part = shard_units(units, Shard(index=index, count=count))
    return sorted({int(unit.id) for unit in part})


def test_800_queries_in_two() -> None:
    units = units_of(800, num_prompts=5)
    assert ids(units, 0, 2) == list(range(400))
    assert ids(units, 1, 2) == list(range(400, 800))


def test_10_in_three() -> None:
    assert [len(ids(units_of(10), index, 3)) for index in range(3)] == [3, 3, 4]


def test_fewer_than_shards_are_not_all_the_last_ones() -> None:
    """A floor split gave all work to the last of them."""
    assert [len(ids(units_of(3), index, 5)) for index in range(5)] == [0, 1, 0, 1, 1]


def test_one_query_of_several_prompts_is_shared() -> None:
    units = units_of(1, num_prompts=4)
    assert [len(shard_units(units, Shard(index=index, count=2))) for index in range(2)] == [2, 2]


@given(
    num_queries=st.integers(0, 12),
    num_prompts=st.integers(1, 3),
    images=st.integers(1, 3),
    count=st.integers(1, 15),
)
def test_shards_are_balanced_and_join_to_the_whole(
    num_queries: int, num_prompts: int, images: int, count: int
) -> None:
    units = units_of(num_queries, num_prompts=num_prompts, images=images)
    parts = [shard_units(units, Shard(index=index, count=count)) for index in range(count)]
    assert tuple(itertools.chain.from_iterable(parts)) == units
    sizes = [len(part) for part in parts]
    assert all(size % images == 0 for size in sizes), "the images of a prompt stay together"
    assert max(sizes) - min(sizes) <= images
    assert min(sizes) > 0 or num_queries * num_prompts < count


def test_a_shard_is_written_as_index_and_count() -> None:
    assert parse_shard("0/2") == Shard(index=0, count=2)
    assert parse_shard("11/12") == Shard(index=11, count=12)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("2/2", "want 0 to 1 of 2: they count from 0"),
        ("0/0", "want at least one part"),
        ("1", "want INDEX/COUNT"),
        ("-1/2", "want INDEX/COUNT"),
        ("0/-2", "want INDEX/COUNT"),
        ("a/b", "want INDEX/COUNT"),
        ("", "want INDEX/COUNT"),
        ("0/2/3", "want INDEX/COUNT"),
        ("0/2\n", "want INDEX/COUNT"),
        ("\u0660/\u0662", "want INDEX/COUNT"),
        ("0/" + "9" * 5000, "want INDEX/COUNT"),
    ],
)
def test_other_texts_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_shard(text)
