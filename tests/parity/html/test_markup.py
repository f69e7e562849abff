"""Numbers for people, and text that stays text."""

import math

import pytest

from triptych.parity.html.markup import NOTHING, Html, number, number_word, table, text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.23e-6, "1.2e-6"),
        (4.9e-2, "4.9e-2"),
        (3e10, "3.0e10"),
        (1.0, "1.0e0"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (math.inf, "infinite"),
        (-math.inf, "-infinite"),
    ],
)
def test_numbers_are_short_and_name_what_is_not_finite(value: float, shown: str) -> None:
    assert number_word(value) == shown


def test_what_is_not_finite_stands_out_and_what_is_not_there_is_a_dash() -> None:
    assert "failed-text" in number(math.nan)
    assert "failed-text" in number(math.inf)
    assert number(1e-3) == "1.0e-3"
    assert number(None) == NOTHING


def test_markup_in_text_is_text() -> None:
    assert text('<b title="x">&') == "&lt;b title=&quot;x&quot;&gt;&amp;"


def test_what_utf_8_cannot_hold_does_not_keep_a_page_from_being_written() -> None:
    assert text("map\udce9") == "map?"


def test_a_table_names_its_columns_and_rows() -> None:
    found = table("<all>", ("name", "n"), [(text("a"), Html("1"))], numeric=("n",))
    assert "<caption>&lt;all&gt;</caption>" in found
    assert '<th scope="col">name</th><th scope="col" class="number">n</th>' in found
    assert '<tr><th scope="row">a</th><td class="number">1</td></tr>' in found


def test_a_row_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        table("all", ("a", "b"), [(text("1"),)])
