"""Compel's syntax: what it means, and what is refused."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import UsageError
from triptych.sampling.prompt_weighting import Fragment, WeightedPrompt, parse_prompt

PLAIN_CHARACTERS = st.characters(exclude_characters='()"\\+-=.:', exclude_categories=["Cs"])
SYNTAX = st.text(alphabet='ab ()",.+-=\\:1.3\n', max_size=40)


def fragments(prompt: str) -> list[tuple[str, float]]:
    """The fragments of a prompt that is not a blend."""
    (text,) = parse_prompt(prompt).texts
    return [(fragment.text, fragment.weight) for fragment in text]


def check(prompt: str, expected: list[tuple[str, float]]) -> None:
    read = fragments(prompt)
    assert [text for text, _ in read] == [text for text, _ in expected]
    weights = [weight for _, weight in read]
    assert weights == pytest.approx([weight for _, weight in expected], rel=0, abs=1e-12)


@pytest.mark.parametrize("count", range(1, 9))
def test_a_sign_is_a_power(count: int) -> None:
    more, less = 1.0, 1.0
    for _ in range(count):
        more, less = more * 1.1, less * 0.9
    for form in ("cat{}", "(cat){}", '"cat"{}'):
        check(form.format("+" * count), [("cat", more)])
        check(form.format("-" * count), [("cat", less)])


# Every row was read by Compel 2.4.0's own parser, PromptParser().parse_conjunction.
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [("", 1)]),
        ("fire (flames)", [("fire flames", 1)]),
        ("(flames)0.5", [("flames", 0.5)]),
        ("(flames).5", [("flames", 0.5)]),
        ("(flames)2", [("flames", 2)]),
        ("(flames)0", [("flames", 0)]),
        ("fire (flames)1.3 now", [("fire", 1), ("flames", 1.3), ("now", 1)]),
        ("tall (picking apricots+)++", [("tall", 1), ("picking", 1.21), ("apricots", 1.331)]),
        ("(picking (apricots)1.3)1.1", [("picking", 1.1), ("apricots", 1.3 * 1.1)]),
        ("a+ b+ c", [("a b", 1.1), ("c", 1)]),
        ("(pretty flowers)+, too hot", [("pretty flowers", 1.1), (", too hot", 1)]),
        ("(a text.)0.7. (b.)0.8", [("a text .", 0.7), (".", 1), ("b .", 0.8)]),
        ("a,b+ c", [("a,", 1), ("b", 1.1), ("c", 1)]),
        ("wow... (wow...)+", [("wow...", 1), ("wow . . .", 1.1)]),
        ("cat hot-dog- eating", [("cat", 1), ("hot-dog", 0.9), ("eating", 1)]),
        ("a - b -- +5 -> c", [("a - b -- +5 -> c", 1)]),
        (r"smile :\) (\(really\))+", [("smile :)", 1), ("(really)", 1.1)]),
        (r"a 12\" record+", [('a 12"', 1), ("record", 1.1)]),
        ('a "red cat"+', [("a", 1), ("red cat", 1.1)]),
        ("((a)+ b)+", [("a", 1.1 * 1.1), ("b", 1.1)]),
        ("cat (+5)+", [("cat", 1), ("+5", 1.1)]),
    ],
)
def test_weights_as_compel_reads_them(prompt: str, expected: list[tuple[str, float]]) -> None:
    check(prompt, expected)


def test_escaped_signs_are_text() -> None:
    """Here Compel would keep the backslash."""
    check(r"c\+\+ (code\-)+", [("c++", 1), ("code-", 1.1)])


@pytest.mark.parametrize(
    ("prompt", "shares"),
    [
        ('("a cat", "a dog").blend(1, 0.6)', (0.625, 0.375)),
        ('("a cat","a dog").blend()', (0.5, 0.5)),
        ('  ( "a cat" , "a dog" ).blend( 3,-1 ) ', (1.5, -0.5)),
        ('("a cat", "a dog").blend(0.7, 0.9, no_normalize)', (0.7, 0.9)),
        ('("a cat", "a dog").blend(no_normalize)', (1.0, 1.0)),
    ],
)
def test_a_blend(prompt: str, shares: tuple[float, ...]) -> None:
    cat, dog = (Fragment(text=text, weight=1.0) for text in ("a cat", "a dog"))
    parsed = parse_prompt(prompt)
    assert parsed.texts == ((cat,), (dog,))
    assert parsed.shares == pytest.approx(shares, abs=1e-12)


def test_a_blend_of_weighted_texts() -> None:
    parsed = parse_prompt('("a (cat)1.3", "dog-, wet").blend(1, 1)')
    assert parsed.texts == (
        (Fragment(text="a", weight=1.0), Fragment(text="cat", weight=1.3)),
        (Fragment(text="dog", weight=0.9), Fragment(text=", wet", weight=1.0)),
    )


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("a (cat:1.3)", r"want Compel's (cat)1.3 for a weight"),
        ("a ((red cat:1.3))", r"want Compel's (red cat)1.3 for a weight"),
        ("a (red (big) cat : 0.8 )", r"want Compel's (cat)0.8 for a weight"),
        ("an image in (16:9)", r"want Compel's (16)9 for a weight"),
        ("a (cat", "an open parenthesis at '(cat'"),
        ("a cat)", "')' inside 'cat)'"),
        ("a cat :)", r"Ordinary parentheses, quotes and signs are written \( \) \" \+ \-."),
        ("fire(flames)+", "'(' inside 'fire(flames)+'"),
        ('a "cat', "an open quote at"),
        ('12" vinyl', "'\"' inside '12\"'"),
        ("a ()+", "an empty group"),
        ('a ""', "an empty group"),
        ("(a - b)+", "got '-' before"),
        ("(a=b)+", "got '=' before"),
        ("(cat)-0.5", "'-0.5' as a weight"),
        ("(cat)1.3x", "'1.3x' as a weight"),
        ("(cat)1.3.4", "'1.3.4' as a weight"),
        ("C++17", "'++17' as a weight"),
        ("made in the U.S.A+ now", "want a weighted word with a dot or '=' in parentheses"),
        ("(cat)1001", "want 0 to 1000"),
        ("((cat)900)900", "want 0 to 1000"),
        ("cat" + "+" * 9000, "want 0 to 1000"),
        ("(" * 3000 + "cat" + ")" * 3000, "want at most 100"),
        ('("a", "b").and()', "want weights and .blend() only"),
        ("a cat.swap(dog)", "want weights and .blend() only"),
        ("a (cat).attend(1.3)", "want the weight behind the parentheses"),
        ("a cat withLora(fur, 0.5)", "want weights and .blend() only"),
        ('a ("b", "c").blend(1, 1)', "want a whole prompt of the form"),
        ("(b, c).blend(1, 1)", "want a whole prompt of the form"),
        ('("b", "c").blend(1)', "got 1 blend weights, want 2"),
        ('("b", "c").blend(1, -1)', "blend weights that sum to 0"),
        ('("b", "c").blend(1, two)', "want numbers with commas between"),
        ('("b", "c").blend(1, 1e3)', "want numbers with commas between"),
        ('("b", "c").blend(1, 99999)', "want weights up to 1000"),
        ('("b", "").blend(1, 1)', "an empty group"),
        ('("b)", "c").blend(1, 1)', "got ')' before"),
    ],
)
def test_what_is_refused(prompt: str, part: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_prompt(prompt)
    assert part in str(refusal.value)


@given(st.text(alphabet=PLAIN_CHARACTERS))
def test_plain_text_is_kept_as_it_is(prompt: str) -> None:
    assert parse_prompt(prompt) == WeightedPrompt(
        texts=((Fragment(text=prompt, weight=1.0),),), shares=(1.0,)
    )


@given(SYNTAX | st.text())
@settings(max_examples=300)
def test_any_text_is_read_or_refused(prompt: str) -> None:
    try:
        parsed = parse_prompt(prompt)
    except UsageError:
        return
    assert len(parsed.texts) == len(parsed.shares)
    for text in parsed.texts:
        assert text
        assert all(0 <= fragment.weight <= 1000 for fragment in text)


WORDS = st.lists(st.sampled_from(["cat", "red", "hot-dog", "1980"]), min_size=1, max_size=3)
WEIGHTS = st.integers(0, 300).map(lambda hundredths: hundredths / 100)


@given(st.lists(st.tuples(WORDS, WEIGHTS), min_size=1, max_size=5))
def test_what_is_written_is_read(pieces: list[tuple[list[str], float]]) -> None:
    prompt = " ".join(f"({' '.join(words)}){weight}" for words, weight in pieces)
    by_word = [(word, weight) for words, weight in pieces for word in words]
    read = [(word, weight) for text, weight in fragments(prompt) for word in text.split(" ")]
    assert read == by_word
    neighbours = fragments(prompt)
    assert all(a[1] != b[1] for a, b in itertools.pairwise(neighbours))
