import csv
import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.errors import BrokenInputError, UsageError
from triptych.workflows.generation.names import id_problem
from triptych.workflows.generation.queries import Query, read_queries

Written = Callable[[str, str | bytes], Path]

PER_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a file of prompts."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def refusal(path: Path, **keys: str) -> str:
    """The message of the refusal, without the file's name."""
    with pytest.raises(BrokenInputError) as caught:
        read_queries(path, **keys)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


# What is read


def test_a_json_list_with_the_first_keys(written: Written) -> None:
    path = written(
        "test1.json",
        '[{"reference_img_id": 123456, "id": 0, "multi_gpt-3.5_opt": ["a cat", "a dog"]},\n\n'
        ' {"reference_img_id": "x7",\n  "multi_gpt-3.5_opt": ["a car"]}]',
    )
    assert read_queries(path) == (
        Query(id="123456", prompts=("a cat", "a dog"), line=1),
        Query(id="x7", prompts=("a car",), line=3),
    )


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "JSONL"])
def test_an_object_a_line_with_the_plainer_keys(suffix: str, written: Written) -> None:
    path = written(
        f"prompts.{suffix}", '{"id": 1, "prompts": ["a", "b"]}\r\n\n{"id": "c d", "prompts": "e"}'
    )
    assert read_queries(path) == (
        Query(id="1", prompts=("a", "b"), line=1),
        Query(id="c d", prompts=("e",), line=3),
    )


def test_rows_of_one_id_below_each_other_are_one_query(written: Written) -> None:
    path = written(
        "prompts.csv",
        "id, prompt,note\r\n"
        '7,"a cat, asleep",\r\n'
        '7,"two\nlines",x\r\n'
        "\r\n"
        "8,a dog,\r\n"
        "7,a bird,\r\n",
    )
    assert read_queries(path) == (
        Query(id="7", prompts=("a cat, asleep", "two\nlines"), line=2),
        Query(id="8", prompts=("a dog",), line=6),
        Query(id="7", prompts=("a bird",), line=7),
    )


def test_keys_can_be_named(written: Written) -> None:
    path = written("prompts.jsonl", '{"id": 1, "prompts": ["a"], "name": "n", "texts": ["t"]}')
    (query,) = read_queries(path, id_key="name", prompts_key="texts")
    assert (query.id, query.prompts) == ("n", ("t",))


def test_a_named_key_that_is_not_there_is_not_replaced_by_another(written: Written) -> None:
    path = written("prompts.jsonl", '{"id": 1, "prompts": ["a"]}')
    message = refusal(path, id_key="reference_id")
    assert " line 1: got keys 'id', 'prompts', want 'reference_id'." in message


def test_ids_of_two_kinds_do_not_mix(written: Written) -> None:
    """In CIRCO's files `id` is the query's number and `reference_img_id` the picture's."""
    path = written(
        "prompts.json",
        '[{"reference_img_id": 5, "id": 0, "prompts": ["a"]},\n{"id": 1, "prompts": ["b"]}]',
    )
    assert "line 2: got no 'reference_img_id', want a text or a whole number" in refusal(path)


def test_a_byte_order_mark_is_no_part_of_the_file(written: Written) -> None:
    """Spreadsheets write one."""
    path = written("prompts.csv", b"\xef\xbb\xbfid,prompt\n1,\xc3\xa9\n")
    assert read_queries(path) == (Query(id="1", prompts=("é",), line=2),)


# What is refused: files


def test_an_unknown_suffix_is_refused_with_those_that_are_known(written: Written) -> None:
    with pytest.raises(UsageError, match=r"\.txt', want \.json, \.jsonl, \.ndjson or \.csv"):
        read_queries(written("prompts.txt", "a cat"))


def test_one_key_for_both_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="want one for each"):
        read_queries(tmp_path / "prompts.json", id_key="a", prompts_key="a")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "prompts.json")


@pytest.mark.skipif(os.name == "nt", reason="Windows gives another error for a folder")
def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").mkdir()
    assert "Is a directory" in refusal(tmp_path / "prompts.json")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_bytes_that_are_not_utf8_have_a_line_and_a_column(suffix: str, written: Written) -> None:
    message = refusal(written(f"prompts.{suffix}", "id,prompt\né, é".encode() + b"\xe9\n"))
    assert message == " line 2, column 5: got byte 0xe9, want UTF-8. Save the file as UTF-8."


def test_utf16_is_refused(written: Written) -> None:
    message = refusal(written("prompts.json", "[]".encode("utf-16")))
    assert message.startswith(" line 1, column 1: got byte 0xff, want UTF-8.")


WHOLE = '[\n {"id": 1, "prompts": ["a"]},\n {"id": 2, "prompts": ["b"]}\n]'


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_json_cut_off_anywhere_is_refused_with_a_place(length: int, written: Written) -> None:
    message = refusal(written("prompts.json", WHOLE[:length]))
    assert message.startswith(f" line {WHOLE[:length].count(chr(10)) + 1}, column ")


def test_the_end_of_a_cut_off_list_is_named(written: Written) -> None:
    message = refusal(written("prompts.json", '[{"id": 1, "prompts": ["a"]},\n'))
    assert message == (
        " line 2, column 1: got the end of the file, want JSON. The file may have been cut off."
    )


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('{"id": 1}', "line 1, column 1", "got '{', want [, where a list of objects begins"),
        ("[] []", "line 1, column 4", "got '[', want nothing after ]"),
        ('[{"id": 1}\n {"id": 2}]', "line 2, column 2", "got '{', want , or ]"),
        ("[{'id': 1}]", "line 1, column 3", "want JSON"),
        ("[\n\n  nope]", "line 3, column 3", "Expecting value, want JSON"),
        ("[" * 200_000, "line 1, column 2", "want an object"),
        (f'[{{"id": {"9" * 5000}}}]', "line 1, column 2", "want an object"),
    ],
)
def test_other_json_is_refused_with_a_place(
    text: str, place: str, problem: str, written: Written
) -> None:
    message = refusal(written("prompts.json", text))
    assert message.startswith(f" {place}: got ")
    assert problem in message


def test_every_broken_line_is_listed(written: Written) -> None:
    path = written(
        "prompts.jsonl",
        '{"id": 1, "prompts": ["a"]}\n{"id": 2, "prompts": ["b"\n[]\n{"id": 4}\n\x00\n'
        '{"id": 6, "prompts": []}',
    )
    lines = refusal(path).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [f"line {n}" for n in (2, 3, 4, 5, 6)]
    assert "Expecting ',' delimiter at column" in lines[0]
    assert "got a list, want an object" in lines[1]
    assert "no 'prompts', want at least one prompt" in lines[2]
    assert "an empty list as 'prompts', want at least one prompt" in lines[4]


@pytest.mark.parametrize("text", ["", "\n\n", "garbage\n{"])
def test_lines_without_a_single_query_are_refused(text: str, written: Written) -> None:
    assert "got " in refusal(written("prompts.jsonl", text))


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.csv", ""), ("a.csv", "id,b\n")])
def test_no_queries_at_all_are_refused(name: str, text: str, written: Written) -> None:
    assert refusal(written(name, text)) == ": got no queries, want at least one."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("7,a cat\n8,a dog\n", " line 2: got keys '7', 'a cat', want 'reference_img_id' or 'id'."),
        ("id,prompt\n7,a,b\n", "line 2: got 3 columns, want 2 as in the header"),
        ("id,prompt\n7,a\n8\n", "line 3: got 1 columns, want 2 as in the header"),
        ("id,prompt,id\n7,a,8\n", " line 1: got columns id, prompt, id, want each once."),
        ('id,prompt\n7,"a cat\n\n', " line 2: got unexpected end of data, want CSV."),
        ('id,prompt\n7,"a" cat\n', " line 2: got ',' expected after '\"', want CSV."),
        (f"id,prompt\n7,{'a' * 200_000}\n", "field larger than field limit"),
        ("id,prompt\n7,\n ,a\n", "nothing but blanks as prompt 1 of 1"),
    ],
)
def test_broken_csv_is_refused_with_its_line(text: str, problem: str, written: Written) -> None:
    assert problem in refusal(written("prompts.csv", text))


# What is refused: ids and prompts


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('""', "an empty id"),
        ('"a/b"', "a path separator"),
        (r'"a\\b"', "a path separator"),
        ('".."', "which names a folder"),
        ('"."', "which names a folder"),
        (r'"a\u0000b"', "a control character"),
        (r'"a\nb"', "a control character"),
        (r'"\u0085"', "a control character"),
        (r'"a\u2028b"', "a control character"),
        (r'"\ud800"', "a control character"),
        ('" a"', "space around it"),
        (f'"{"x" * 10_000}"', "of 10000 bytes, want at most"),
        (f'"{"é" * 120}"', "of 240 bytes, want at most"),
        ("true", "a boolean as 'id'"),
        ("1.5", "a number as 'id'"),
        ("NaN", "a number as 'id'"),
        ("null", "null as 'id'"),
        ('{"a": 1}', "an object as 'id'"),
    ],
)
def test_an_id_that_cannot_be_part_of_a_name_is_refused(
    value: str, problem: str, written: Written
) -> None:
    message = refusal(written("prompts.json", f'[\n{{"id": {value}, "prompts": ["a"]}}]'))
    assert "\n  line 2: got " in message
    assert problem in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[]", "an empty list as 'prompts'"),
        ('["a", "", "b", "\\t\\n "]', "nothing but blanks as prompt 2 of 4"),
        ('["a", 5]', "a number as prompt 2 of 2"),
        ('["a", ["b"]]', "a list as prompt 2 of 2"),
        ("null", "null as prompt 1 of 1"),
        ("7", "a number as prompt 1 of 1"),
        (r'["\udfff"]', "a text with half a surrogate pair as prompt 1 of 1"),
    ],
)
def test_prompts_that_say_nothing_are_refused(value: str, problem: str, written: Written) -> None:
    message = refusal(written("prompts.json", f'[\n\n{{"id": 1, "prompts": {value}}}]'))
    assert f"line 3: got {problem}" in message


def test_every_problem_is_listed_with_its_line(written: Written) -> None:
    path = written(
        "prompts.json",
        '[{"id": "a/b", "prompts": [""]},\n{"id": 1, "prompts": ["fine"]},\n17,\n{"id": 2}]',
    )
    lines = refusal(path).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "line 1",
        "line 1",
        "line 3",
        "line 4",
    ]


def test_of_very_many_problems_the_first_are_listed_and_the_others_counted(
    written: Written,
) -> None:
    path = written("prompts.jsonl", '{"id": "", "prompts": ["a"]}\n' * 1000)
    lines = refusal(path).splitlines()[1:]
    assert len(lines) == 21
    assert lines[19].startswith("  line 20:")
    assert lines[20] == "  and 980 more"


# Whatever is written is read again

PROMPTS = st.text(min_size=1).filter(lambda text: text.strip() != "")
IDS = st.text(min_size=1, max_size=50).filter(lambda text: id_problem(text) == "")
QUERIES = st.lists(st.tuples(IDS, st.lists(PROMPTS, min_size=1, max_size=4)), min_size=1)


@PER_FILE
@given(queries=QUERIES, indent=st.sampled_from([None, 0, 3]))
def test_json_round_trip(
    queries: list[tuple[str, list[str]]], indent: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.json"
    objects = [{"id": name, "prompts": prompts} for name, prompts in queries]
    text = json.dumps(objects, indent=indent, ensure_ascii=indent is None)
    path.write_bytes(text.encode())
    read = read_queries(path)
    assert [(query.id, list(query.prompts)) for query in read] == queries
    lines = text.split("\n")
    assert all(lines[query.line - 1].lstrip(" ").startswith(("{", "[{")) for query in read)
    assert [query.line for query in read] == sorted(query.line for query in read)


@PER_FILE
@given(queries=QUERIES)
def test_json_lines_round_trip(queries: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": name, "prompts": prompts} for name, prompts in queries]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(text.encode())
    assert [(query.id, list(query.prompts), query.line) for query in read_queries(path)] == [
        (name, prompts, line) for line, (name, prompts) in enumerate(queries, start=1)
    ]


@PER_FILE
@given(rows=st.lists(st.tuples(st.sampled_from(["a", "b", "é"]), PROMPTS), min_size=1))
def test_csv_round_trip(rows: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("id", "prompt"), *rows])
    path.write_bytes(stream.getvalue().encode())
    queries = read_queries(path)
    assert [(query.id, prompt) for query in queries for prompt in query.prompts] == rows
    assert all(first.id != second.id for first, second in itertools.pairwise(queries))


@PER_FILE
@given(content=st.binary(max_size=60), suffix=st.sampled_from(["json", "jsonl", "csv"]))
def test_any_bytes_are_read_or_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts.{suffix}"
    path.write_bytes(content)
    try:
        read_queries(path)
    except BrokenInputError as error:
        assert str(path) in str(error)  # noqa: PT017  what is not raised is fine too
