import unicodedata

from triptych.workflows.generation.queries import Query
from triptych.workflows.generation.query_warnings import find_warnings


def query(name: str, *, line: int, num_prompts: int = 2) -> Query:
    return Query(id=name, prompts=("a",) * num_prompts, line=line)


def warnings(*queries: Query, num_prompts: int = 2) -> list[str]:
    return list(find_warnings(queries, num_prompts=num_prompts))


def test_ordinary_queries_give_no_warning() -> None:
    assert warnings(query("1", line=1), query("2", line=2), query("x y", line=3)) == []


def test_an_id_that_is_there_twice_is_named_with_its_lines() -> None:
    (warning,) = warnings(query("7", line=3), query("8", line=4), query("7", line=9))
    assert warning.splitlines()[1:] == ["  '7' on lines 3, 9"]
    assert "all are done" in warning


def test_ids_that_some_file_systems_take_for_one_are_named() -> None:
    composed = unicodedata.normalize("NFC", "é")
    (warning,) = warnings(
        query("Cat", line=1),
        query("cAT", line=2),
        query("dog", line=3),
        query(unicodedata.normalize("NFD", composed), line=4),
        query(composed, line=5),
    )
    assert [line.count("on line") for line in warning.splitlines()[1:]] == [2, 2]
    assert "'Cat' on line 1, 'cAT' on line 2" in warning


def test_fewer_prompts_than_wanted_are_named() -> None:
    (warning,) = warnings(query("1", line=5, num_prompts=1), query("2", line=6), num_prompts=2)
    assert warning.splitlines()[1:] == ["  line 5: '1' has 1"]


def test_ids_that_readers_or_systems_take_apart_are_named() -> None:
    """`combined_a_b_0.jpg`.split("_")[1] is "a"."""
    first, second = warnings(query("a_b", line=1), query("coco:5", line=2))
    assert "line 1: 'a_b'" in first
    assert "line 2: 'coco:5'" in second
    assert "Windows" in second


def test_very_many_are_counted() -> None:
    (warning,) = warnings(*(query(str(line), line=line) for line in range(100)), num_prompts=9)
    assert len(warning.splitlines()) == 22
    assert warning.endswith("  and 80 more")
