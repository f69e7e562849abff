from collections import Counter, defaultdict
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.sampling.noise import gaussian_noise
from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.units import SeedRule, plan_units

PROMPTS_BY_ID = st.lists(
    st.tuples(
        st.sampled_from(["1", "2", "a", "a_1"]),
        st.lists(st.text("xyz", min_size=1), min_size=1, max_size=4),
    ),
    max_size=6,
)


def queries_of(prompts_by_id: list[tuple[str, list[str]]]) -> tuple[Query, ...]:
    return tuple(query(name, *prompts) for name, prompts in prompts_by_id)


def query(name: str, *prompts: str) -> Query:
    return Query(id=name, prompts=prompts, line=1)


def test_pictures_are_counted_prompt_by_prompt_and_image_by_image() -> None:
    units = plan_units([query("7", "a", "b")], num_prompts=5, images_per_prompt=2)
    assert [(unit.n, unit.prompt, unit.image_index) for unit in units] == [
        (0, "a", 0),
        (1, "a", 1),
        (2, "b", 0),
        (3, "b", 1),
    ]


def test_a_second_query_of_an_id_is_done_and_goes_on_counting() -> None:
    """Counted by what is on the disk, a second query of an id was passed over in silence."""
    units = plan_units(
        [query("7", "a"), query("8", "b"), query("7", "c", "d")],
        num_prompts=5,
        images_per_prompt=1,
    )
    assert [(unit.id, unit.n, unit.prompt) for unit in units] == [
        ("7", 0, "a"),
        ("8", 0, "b"),
        ("7", 1, "c"),
        ("7", 2, "d"),
    ]


def test_every_image_of_a_prompt_is_a_unit() -> None:
    """Of a batch, the first image alone was once saved."""
    units = plan_units([query("7", "a")], num_prompts=1, images_per_prompt=3)
    assert [(unit.n, unit.image_index) for unit in units] == [(0, 0), (1, 1), (2, 2)]
    assert len({unit.seed for unit in units}) == 3


def test_the_first_prompts_are_taken_and_those_of_short_queries_too() -> None:
    units = plan_units(
        [query("7", "a", "b", "c"), query("8", "d")], num_prompts=2, images_per_prompt=1
    )
    assert [unit.prompt for unit in units] == ["a", "b", "d"]


@given(
    wanted=PROMPTS_BY_ID,
    num_prompts=st.integers(1, 5),
    images_per_prompt=st.integers(1, 3),
    rule=st.sampled_from(get_args(SeedRule)),
)
def test_numbers_of_an_id_have_no_holes_and_ascend(
    wanted: list[tuple[str, list[str]]],
    num_prompts: int,
    images_per_prompt: int,
    rule: SeedRule,
) -> None:
    queries = queries_of(wanted)
    units = plan_units(
        queries, num_prompts=num_prompts, images_per_prompt=images_per_prompt, seed_rule=rule
    )
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for unit in units:
        numbers[unit.id].append(unit.n)
        assert queries[unit.query_index].id == unit.id
        assert queries[unit.query_index].prompts[unit.prompt_index] == unit.prompt
    assert all(found == list(range(len(found))) for found in numbers.values())
    places = Counter((unit.query_index, unit.prompt_index, unit.image_index) for unit in units)
    assert max(places.values(), default=1) == 1
    assert len(units) == images_per_prompt * sum(
        min(num_prompts, len(query.prompts)) for query in queries
    )


@given(wanted=PROMPTS_BY_ID, more=PROMPTS_BY_ID)
def test_what_comes_later_in_the_input_changes_nothing_before_it(
    wanted: list[tuple[str, list[str]]], more: list[tuple[str, list[str]]]
) -> None:
    units = plan_units(queries_of(wanted), num_prompts=3, images_per_prompt=2)
    longer = plan_units(queries_of(wanted + more), num_prompts=3, images_per_prompt=2)
    assert longer[: len(units)] == units


# Seeds


def seeds(rule: SeedRule, *, base_seed: int = 0) -> list[int]:
    units = plan_units(
        [query("7", "a", "b")],
        num_prompts=2,
        images_per_prompt=2,
        seed_rule=rule,
        base_seed=base_seed,
    )
    return [unit.seed for unit in units]


def test_every_picture_has_a_seed_of_its_own_which_never_changes() -> None:
    """These numbers are in datasets: another rule needs another name."""
    assert seeds("picture") == [1358949810, 2766978914, 1661175661, 3386972447]
    assert set(seeds("picture")).isdisjoint(seeds("picture", base_seed=1))


def test_images_of_all_prompts_can_share_their_seeds() -> None:
    assert seeds("image", base_seed=5) == [5, 6, 5, 6]


def test_all_can_have_one_seed() -> None:
    assert seeds("fixed", base_seed=5) == [5, 5, 5, 5]


def test_seeds_of_4000_pictures_differ() -> None:
    queries = [query(str(number), *"abcde") for number in range(800)]
    units = plan_units(queries, num_prompts=5, images_per_prompt=1)
    assert len({unit.seed for unit in units}) == len(units) == 4000


@pytest.mark.parametrize("rule", get_args(SeedRule))
def test_the_noise_takes_every_seed(rule: SeedRule) -> None:
    for seed in (*seeds(rule), *seeds(rule, base_seed=2**63 - 2)):
        assert gaussian_noise((1,), seed=seed).shape == (1,)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_prompts": 0}, "num_prompts: got 0"),
        ({"images_per_prompt": 0}, "images_per_prompt: got 0"),
        ({"base_seed": -1}, "base seed: got -1"),
        ({"base_seed": 2**63}, "base seed"),
        ({"base_seed": 2**63 - 1, "images_per_prompt": 2}, "base seed"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(settings: dict[str, int], problem: str) -> None:
    wishes = {"num_prompts": 1, "images_per_prompt": 1, "base_seed": 0, **settings}
    with pytest.raises(UsageError, match=problem):
        plan_units(
            [query("7", "a")],
            num_prompts=wishes["num_prompts"],
            images_per_prompt=wishes["images_per_prompt"],
            base_seed=wishes["base_seed"],
        )
