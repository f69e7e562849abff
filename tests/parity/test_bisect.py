"""Ranking what was measured: shares, noise, and what an error is like."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.parity.bisect import (
    Share,
    Trial,
    carriers_text,
    make_share,
    part_of,
    percent_text,
    ranked,
    worst,
)
from triptych.parity.component_trial import MeasuredComponent
from triptych.parity.delta_debug import smallest_subset
from triptych.parity.likeness import closeness, find_likeness, most_alike_first
from triptych.parity.report import Row
from triptych.types import Array, Verdict

NAMES = [f"pass {number}" for number in range(70)]


def share(name: str, alone: float, without: float = 0.0, *, whole: float = 1.0) -> Share:
    return make_share(name, alone=alone, without=without, whole=whole, self_difference=0.0)


def row(verdict: Verdict) -> Row:
    return Row(stage="image", component="vae_decoder", case="", precision="fp32", verdict=verdict)


# --- delta debugging -----------------------------------------------------------------------------


@given(st.integers(min_value=0, max_value=69))
def test_one_guilty_pass_is_found_in_few_questions(guilty: int) -> None:
    asked = []

    def is_enough(part: tuple[str, ...]) -> bool:
        asked.append(part)
        return NAMES[guilty] in part

    assert smallest_subset(NAMES, is_enough) == (NAMES[guilty],)
    assert len(asked) <= 2 + 2 * math.ceil(math.log2(len(NAMES)))
    assert len(set(asked)) == len(asked)


@given(st.sets(st.sampled_from(NAMES), min_size=2, max_size=4))
def test_passes_that_are_guilty_together_are_found_together(guilty: set[str]) -> None:
    found = smallest_subset(NAMES, lambda part: guilty <= set(part))
    assert found == tuple(name for name in NAMES if name in guilty)


@given(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
def test_nothing_is_named_where_nothing_is_enough(items: list[str]) -> None:
    assert smallest_subset(items, lambda _: False) == ()


@given(st.lists(st.sampled_from(NAMES), unique=True, max_size=8))
def test_nothing_is_named_where_nothing_is_needed(items: list[str]) -> None:
    assert smallest_subset(items, lambda _: True) == ()


@given(
    st.dictionaries(st.sampled_from(NAMES[:12]), st.floats(0.0, 1.0), min_size=12, max_size=12),
    st.floats(0.1, 0.95),
)
def test_of_what_is_found_nothing_can_be_left_out(weights: dict[str, float], wanted: float) -> None:
    """An oracle as a real one: what is left out takes its part of the error with it."""
    limit = wanted * math.fsum(weights.values())

    def is_enough(part: tuple[str, ...]) -> bool:
        return math.fsum(weights[name] for name in part) > limit

    found = smallest_subset(NAMES[:12], is_enough)
    if found:
        assert is_enough(found)
        assert not any(
            is_enough(tuple(other for other in found if other != name)) for name in found
        )


# --- shares --------------------------------------------------------------------------------------


def test_what_carries_most_comes_first() -> None:
    shares = ranked([share("vae_decoder", 0.1, 0.9), share("unet", 0.9, 0.1), share("none", 0.0)])
    assert [one.name for one in shares] == ["unet", "vae_decoder", "none"]
    assert [one.carries for one in shares] == [True, True, False]
    assert carriers_text(row("failed"), shares) == (
        "the error is carried by unet (90 %), vae_decoder (10 %)"
    )


def test_what_keeps_its_limits_needs_no_explaining() -> None:
    assert carriers_text(row("passed"), [share("unet", 1.0)]).startswith("nothing to explain")
    assert carriers_text(row("not_run"), [share("unet", 1.0)]).startswith("the error is carried")


def test_an_error_of_several_together_is_nobody_s_alone() -> None:
    shares = [share("text_encoder", 0.01, 0.02), share("unet", 0.05, 0.02)]
    assert carriers_text(row("failed"), shares).startswith("none of them alone")


def test_up_to_twice_what_two_equal_runs_differ_by_is_noise() -> None:
    near, far = (
        make_share("unet", alone=0.5, without=0.5, whole=1.0, self_difference=difference)
        for difference in (0.25, 0.24)
    )
    assert (near.is_noise, near.carries) == (True, False)
    assert (far.is_noise, far.carries) == (False, True)


def test_what_is_there_without_any_switch_is_none_of_theirs() -> None:
    found = make_share("unet", alone=0.4, without=0.4, whole=1.0, self_difference=0.0, exact=0.4)
    assert (found.alone, found.share) == (0.0, 0.0)


def test_a_switch_that_cannot_be_alone_is_measured_by_what_goes_with_it() -> None:
    found = make_share("mode", alone=None, without=0.25, whole=1.0, self_difference=0.0)
    assert (found.alone, found.share) == (None, 0.75)


def test_a_run_that_stopped_is_carried_by_who_stops_it_alone() -> None:
    guilty = share("unet", math.inf, 1e-6, whole=math.inf)
    other = share("vae_decoder", 1e-2, math.inf, whole=math.inf)
    assert ranked([other, guilty])[0] == guilty
    assert (guilty.carries, other.carries) == (True, False)
    assert percent_text(share("unet", math.inf).share) == "more than all"


@given(st.lists(st.floats(0.0, 1e3), max_size=5), st.integers(0, 5))
def test_nan_is_the_worst_error(errors: list[float], place: int) -> None:
    assert worst([*errors[:place], math.nan, *errors[place:]]) == math.inf
    assert worst(errors) == (max(errors) if errors else math.inf)


def test_a_part_of_nothing() -> None:
    assert part_of(0.0, 0.0) == 0
    assert part_of(1e-9, 0.0) == math.inf


# --- likeness ------------------------------------------------------------------------------------


def measured(name: str, errors: Array, sizes: dict[str, float]) -> MeasuredComponent:
    trial = Trial(name=name, error=max(sizes.values()), distances=sizes)
    return MeasuredComponent(trial=trial, errors={"t=951": errors})


def test_an_error_is_known_by_its_sizes_and_by_where_it_points() -> None:
    random = np.random.default_rng(0)
    first, second = random.standard_normal((2, 4096))
    early = {"t=951": 4e-3, "t=1": 7e-4}
    bundle = measured("the bundle", first, early)
    found = most_alike_first(
        find_likeness(bundle, one)
        for one in (
            measured("another pattern", first, {"t=951": 7e-4, "t=1": 7e-4}),
            measured("another rounding", second, early),
            measured("the same", first * 1.01, {"t=951": 4.1e-3, "t=1": 7e-4}),
        )
    )
    assert [(one.name, one.kind) for one in found] == [
        ("the same", "same"),
        ("another rounding", "size"),
        ("another pattern", "other"),
    ]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_nothing_is_like_what_is_no_number(wrong: float) -> None:
    assert closeness({"t=1": wrong}, {"t=1": wrong}) == 0
    assert closeness({"t=1": 1.0}, {}) == 0
    assert closeness({}, {}) == 0


def test_a_trial_that_could_not_be_made_is_like_nothing() -> None:
    stopped = MeasuredComponent(trial=Trial(name="int8", error=math.inf, stopped_by="no nncf"))
    bundle = measured("the bundle", np.ones(4), {"t=1": 1.0})
    assert find_likeness(bundle, stopped).kind == "other"
