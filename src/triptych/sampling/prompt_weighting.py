"""Compel's prompt syntax: weighted fragments of a text, and blends of several texts.

Only the syntax; `weighted_encoding.py` has the arithmetic. What is accepted here reads as Compel
reads it. What Compel would quietly take for plain text, such as a lone parenthesis or A1111's
`(word:1.3)`, is an error instead: a weight that does nothing is a mistake nobody sees.

Source:
    damian0815/compel 2.4.0: doc/syntax.md, src/compel/prompt_parser.py.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError

PLUS_BASE = 1.1
"""Weight of one `+`; k of them weigh 1.1^k."""

MINUS_BASE = 0.9
"""Weight of one `-`; k of them weigh 0.9^k."""

MAX_WEIGHT = 1000.0
"""Compel's documentation stops at 2; far above that, float32 overflows."""

_MAX_GROUPS = 100
"""More than the 75 tokens of a prompt can use."""

_SPACES = " \t\n\r\f\v"
_SYNTAX = r'()",.+\-='
_NUMBER = r"[+-]?(?:\d+\.\d*|\.\d+)|-?\d+"
_QUOTED = r'"((?:[^"\\]|\\"|\\(?!"))*)"'

_COMMA_BEFORE_WORD = re.compile(r",(\S)")
_SPACE = re.compile(rf"[{_SPACES}]*")
_WORD = re.compile(rf"(?:\\[{_SYNTAX}]|[+-](?![{_SPACES}{_SYNTAX}]|$)|[^{_SPACES}{_SYNTAX}])+")
_A_SPACE = re.compile(rf"[{_SPACES}]")
_SIGNS = re.compile(r"\++|-+")
_WEIGHT = re.compile(rf"\++|-+|{_NUMBER}")
_QUOTED_TEXT = re.compile(_QUOTED)
_BLEND = re.compile(
    rf"[{_SPACES}]*\([{_SPACES}]*({_QUOTED}(?:[{_SPACES}]*,[{_SPACES}]*{_QUOTED})*)[{_SPACES}]*\)"
    rf"\.blend\(([^()]*)\)[{_SPACES}]*"
)
_OPERATOR = re.compile(r"\.(blend|and|add|swap|attend)\(|(useLora|withLora)\(")
_A1111_WEIGHT = re.compile(rf"(?:^|(?<=[():]))([^():]*):[{_SPACES}]*([+-]?[\d.]+)[{_SPACES}]*\)")
_BARE_SYNTAX = re.compile(r'(?<!\\)[()"]')
_ESCAPED = re.compile(r'\\([()"+-])')

_ESCAPE_HINT = r"Ordinary parentheses, quotes and signs are written \( \) \" \+ \-."


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A piece of a text that has one weight.

    Attributes:
        text: as the tokenizer gets it.
        weight: 1 leaves the encoder's output as it is; 0 is the text without the fragment.
    """

    text: str
    weight: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPrompt:
    """One prompt, read.

    Attributes:
        texts: the fragments of each text to encode; several texts are blended.
        shares: the factor of each text's embedding; they sum to 1 unless `no_normalize` is asked.
    """

    texts: tuple[tuple[Fragment, ...], ...]
    shares: tuple[float, ...]


def parse_prompt(prompt: str) -> WeightedPrompt:
    r"""Read one prompt in Compel's syntax.

    `word+`, `word--`, `(some words)+`, `(some words)1.3`, nested as deep as wanted, and, as a
    whole prompt, `("one", "another").blend(1, 0.5)`. Without any of it the text is kept as it is.

    Two readings are not Compel's: `\+` and `\-` lose their backslash, and what Compel reads as
    plain text although it looks like syntax is refused.

    Raises:
        UsageError: the syntax is incomplete, foreign, or one of Compel's that is not supported
            (`.and()`, `.swap()`, `.attend()`, LoRAs).
    """
    _check_syntax(prompt)
    spaced = _COMMA_BEFORE_WORD.sub(r", \1", prompt)
    if blend := _BLEND.fullmatch(spaced):
        texts = tuple(
            _fused(_read_group(quoted, prompt=prompt)) for quoted in _QUOTED_TEXT.findall(blend[1])
        )
        return WeightedPrompt(texts=texts, shares=_read_shares(blend[4], len(texts), prompt=prompt))
    if operator := _OPERATOR.search(spaced):
        raise _refusal(prompt, f"{operator[0]}...) in it", _supported(operator[0]))
    fragments = _fused(_read_prompt(spaced, prompt=prompt))
    words = " ".join(word for word in _A_SPACE.split(spaced) if word)
    if fragments == (Fragment(text=words, weight=1.0),):  # nothing in it was syntax
        fragments = (Fragment(text=prompt, weight=1.0),)
    return WeightedPrompt(texts=(fragments,), shares=(1.0,))


def _check_syntax(prompt: str) -> None:
    if foreign := _A1111_WEIGHT.search(prompt):
        words, weight = foreign.groups()
        raise _refusal(
            prompt, f"{foreign[0]!r}", f"Compel's ({words.strip()}){weight} for a weight"
        )
    count = prompt.count("(")
    if count > _MAX_GROUPS:
        raise _refusal(prompt, f"{count} parentheses", f"at most {_MAX_GROUPS}")


def _supported(operator: str) -> str:
    match operator:
        case ".blend(":
            return 'a whole prompt of the form ("one", "another").blend(1, 0.5)'
        case ".attend(":
            return "the weight behind the parentheses, as in (word)1.3"
        case _:
            return "weights and .blend() only"


def _read_prompt(text: str, *, prompt: str) -> list[Fragment]:
    """The weighted words of a text at its outermost level, where a plain word takes any sign."""
    fragments: list[Fragment] = []
    at = _skip_spaces(text, 0)
    while at < len(text):
        if text[at] in '("':
            inner, at = _read_weighted_group(text, at, prompt=prompt)
            fragments += inner
        else:
            word, at = _read_weighted_word(text, at, prompt=prompt) or _read_plain(
                text, at, prompt=prompt
            )
            fragments.append(word)
        at = _skip_spaces(text, at)
    return fragments


def _read_group(text: str, *, prompt: str) -> list[Fragment]:
    """The weighted words of a quoted text."""
    fragments, at = _read_words(text, 0, prompt=prompt)
    if at < len(text):
        raise _refusal(prompt, f"{text[at]!r} before {text[at:]!r}", "it closed, or escaped")
    return fragments


def _read_words(text: str, at: int, *, prompt: str) -> tuple[list[Fragment], int]:
    """Weighted words up to a closing parenthesis or the end, and the position there."""
    fragments: list[Fragment] = []
    at = _skip_spaces(text, at)
    while at < len(text) and text[at] != ")":
        if text[at] in '("':
            inner, at = _read_weighted_group(text, at, prompt=prompt)
            fragments += inner
        elif text[at] in ",.":
            fragments.append(Fragment(text=text[at], weight=1.0))
            at += 1
        elif weighted := _read_weighted_word(text, at, prompt=prompt):
            word, at = weighted
            fragments.append(word)
        elif plain := _WORD.match(text, at):
            fragments.append(Fragment(text=_unescaped(plain[0]), weight=1.0))
            at = plain.end()
        else:
            raise _refusal(prompt, f"{text[at]!r} before {text[at + 1 :]!r}", "words in a group")
        at = _skip_spaces(text, at)
    if not fragments:
        raise _refusal(prompt, "an empty group", "words in it")
    return fragments, at


def _read_weighted_group(text: str, at: int, *, prompt: str) -> tuple[list[Fragment], int]:
    """What stands in parentheses or quotes, with the weight behind it if there is one."""
    if text[at] == '"':
        quoted = _QUOTED_TEXT.match(text, at)
        if quoted is None:
            raise _refusal(prompt, f"an open quote at {text[at:]!r}", "it closed, or escaped")
        fragments, at = _read_group(quoted[1], prompt=prompt), quoted.end()
    else:
        fragments, end = _read_words(text, at + 1, prompt=prompt)
        if end == len(text):
            raise _refusal(prompt, f"an open parenthesis at {text[at:]!r}", "it closed, or escaped")
        at = end + 1
    weight = _WEIGHT.match(text, at)
    if weight is None:
        return fragments, at
    factor = _read_weight(weight, prompt=prompt)
    scaled = [Fragment(text=part.text, weight=factor * part.weight) for part in fragments]
    return scaled, weight.end()


def _read_weighted_word(text: str, at: int, *, prompt: str) -> tuple[Fragment, int] | None:
    """A word with signs behind it; None where there are no signs."""
    word = _WORD.match(text, at)
    signs = _SIGNS.match(text, word.end()) if word else None
    if word is None or signs is None:
        return None
    weight = _read_weight(signs, prompt=prompt)
    return Fragment(text=_unescaped(word[0]), weight=weight), signs.end()


def _read_plain(text: str, at: int, *, prompt: str) -> tuple[Fragment, int]:
    """Everything up to the next space; it must not look as if it were weighted."""
    word = _A_SPACE.split(text[at:], maxsplit=1)[0]
    if bare := _BARE_SYNTAX.search(word):
        raise _refusal(prompt, f"{bare[0]!r} inside {word!r}", "it at a word's start, or escaped")
    if word.strip("+-") and _SIGNS.search(word[-1]) and not word.endswith(("\\+", "\\-")):
        raise _refusal(prompt, repr(word), "a weighted word with a dot or '=' in parentheses")
    return Fragment(text=_unescaped(word), weight=1.0), at + len(word)


def _read_weight(match: re.Match[str], *, prompt: str) -> float:
    """The number that signs or digits stand for, with nothing glued to it."""
    rest = match.string[match.end() :]
    if re.match(r"[^\W_]|\.\d", rest):
        raise _refusal(prompt, f"{match[0] + rest!r} as a weight", "a space behind the weight")
    sign = match[0][0]
    if match[0].strip("+-"):
        weight = float(match[0])
    else:
        base = PLUS_BASE if sign == "+" else MINUS_BASE
        weight = math.pow(base, min(len(match[0]), 1000))
    if not 0 <= weight <= MAX_WEIGHT:
        raise _refusal(prompt, f"weight {match[0][:20]}", f"0 to {MAX_WEIGHT:g}")
    return weight


def _read_shares(text: str, count: int, *, prompt: str) -> tuple[float, ...]:
    """The weights of a blend: as many as texts, or none for equal ones."""
    options = [option.strip(_SPACES) for option in text.split(",")] if text.strip() else []
    normalised = options[-1:] != ["no_normalize"]
    numbers = options if normalised else options[:-1]
    if not all(re.fullmatch(_NUMBER, number) for number in numbers):
        raise _refusal(prompt, f".blend({text})", "numbers with commas between")
    weights = [float(number) for number in numbers] or [1.0] * count
    if len(weights) != count:
        raise _refusal(prompt, f"{len(weights)} blend weights", f"{count}: one for each text")
    if not all(abs(weight) <= MAX_WEIGHT for weight in weights):
        raise _refusal(prompt, f".blend({text})", f"weights up to {MAX_WEIGHT:g}")
    total = math.fsum(weights) if normalised else 1.0
    if total == 0:
        raise _refusal(prompt, "blend weights that sum to 0", "another sum, or no_normalize")
    return tuple(weight / total for weight in weights)


def _fused(fragments: Sequence[Fragment]) -> tuple[Fragment, ...]:
    """Neighbours of one weight joined by a space; one empty fragment where there are none."""
    fused: list[Fragment] = []
    for fragment in fragments:
        if fused and fused[-1].weight == fragment.weight:
            text = f"{fused[-1].text} {fragment.text}"
            fused[-1] = Fragment(text=text, weight=fragment.weight)
        else:
            fused.append(fragment)
    return tuple(_checked(fused)) or (Fragment(text="", weight=1.0),)


def _checked(fragments: Iterable[Fragment]) -> Iterable[Fragment]:
    for fragment in fragments:
        if fragment.weight > MAX_WEIGHT:
            raise UsageError(
                f"prompt: got weight {fragment.weight:g} of {fragment.text!r}, "
                f"want 0 to {MAX_WEIGHT:g}."
            )
        yield fragment


def _unescaped(word: str) -> str:
    return _ESCAPED.sub(r"\1", word)


def _skip_spaces(text: str, at: int) -> int:
    spaces = _SPACE.match(text, at)
    return spaces.end() if spaces else at


def _refusal(prompt: str, actual: str, expected: str) -> UsageError:
    return UsageError(f"prompt {prompt!r}: got {actual}, want {expected}. {_ESCAPE_HINT}")
