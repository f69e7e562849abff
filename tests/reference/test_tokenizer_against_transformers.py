"""CLIP's tokenizer beside transformers' slow CLIPTokenizer, id for id, and the fast one."""

import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from triptych.models.tokenizer import ClipTokenizer, load_tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PADS = [EOS, "!"]  # of SDXL's tokenizer and tokenizer_2
WORDS = """
    a photo photograph of the cat cats astronaut riding horse on mars it's don't they're we'll
    i've i'd i'm high quality highly detailed café naïve 8k 4k 猫 猫が 写真 😀 😀😀 ... !!! ?!
""".split()  # noqa: SIM905 - a list of 30 strings is no easier to read
NUM_MERGES = 150

PROMPTS = [
    "",
    " ",
    " \t\r\n ",
    "a photo of a cat",
    "A PhotoGraph of THE Cats",
    "an astronaut\nriding\ta horse  on\r\nmars",
    "it's, don't; they're we'll i've i'd i'm IT'S o'clock 'tis ''s 's' '",
    "'\u017f \u017f 'S 'LL 'Ve",
    "!!! ?! ... ,,, (((masterpiece:1.2))), [b], {c} a!b !a! -- __x__ <b>",
    "8k 4k 2024 3.14 1,000 ½ ² Ⅷ ٣ x2y",
    "café cafe\u0301 naïve NAÏVE \u1e9b\u0323 Å \u212b \u212a",
    "ΟΔΥΣΣΕΥΣ Σ İstanbul ISPARTA ẞ Straße ǅ",
    "猫 猫が 写真写真 漢字カタカナ \uf900 \U00020000 \U0002f800 \u3007 한글",
    "😀 😀😀 👩\u200d🚀 🏳️\u200d🌈 👍🏽 1️⃣",
    "soft\u00adhyphen zero\u200bwidth \ufeffbom nul\x00 bell\x07 \x1b[0m \x85 \x1c \x1f \ufffd",
    "\u00a0 \u2003 \u3000 \u2028 \u2029 \u1680 a\u2028b a\u3000b",
    "\ue000 private \uffff \U0010ffff unassigned \u0378",
    "&amp; &lt;b&gt; “curly” it\u2019s ﬁne \uff46\uff55\uff4c\uff4c\uff01 â€œmojibakeâ€\x9d",
    f"{BOS} a {EOS}",
    f"a{EOS}b{BOS}{BOS}c",
    "<|ENDOFTEXT|> <|StartOfText|>a !!<|ENDOFTEXT|>!! <|end\u200boftext|> <|\u017ftartoftext|>",
    "<|endoftext <| |> <|endoftext|",
    " ".join(["cat"] * 75),
    " ".join(["cat"] * 76),
    "highly detailed photograph of the cat, " * 30,
    "a" * 500,
    EOS * 100,
    "a\u0345b \u0345 \u03b1\u0345 ?\u0345? '\u0345s Σ\u0345",  # the mark the pattern skips
    "مرحبا שלום हिन्दी ไทย ქართული",
]
ONLY_FOR_THE_SLOW = ["lone \ud800 surrogate \udfff"]  # the fast one cannot take these

# Where CLIPTokenizerFast gives other ids than the slow one: the differences our docstring names.
FAST_DIFFERS = [
    "zero\u200bwidth",
    "👩\u200d🚀",
    "nul\x00",
    "\ufffd",
    "写真写真",
    "ΟΔΥΣΣΕΥΣ",
    "??<|ENDOFTEXT|>",
]
FAST_AGREES = [
    "",
    " ",
    "a photo of a cat",
    "A PhotoGraph of THE Cats, 8k 4k 2024!",
    "an astronaut\nriding\ta horse  on\r\nmars",
    "it's, don't; they're we'll i've i'd i'm IT'S o'clock it\u2019s",
    "&amp; &lt;b&gt; \uff46\uff55\uff4c\uff4c <|ENDOFTEXT|>",
    "(((masterpiece:1.2))), [b], {c} a!b !a!",
    "café cafe\u0301 naïve NAÏVE",
    "😀 😀😀",
    f"a{EOS}b{BOS}{BOS}c",
    "highly detailed photograph of the cat, " * 30,
]


class TransformersTokenizer(Protocol):
    """The call diffusers makes; transformers has no types."""

    def __call__(
        self, text: list[str], *, padding: str, max_length: int, truncation: bool
    ) -> dict[str, list[list[int]]]: ...
    def tokenize(self, text: str) -> list[str]: ...
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    def save_pretrained(self, save_directory: Path) -> tuple[str, ...]: ...


def learn_merges(symbols: dict[int, str]) -> list[tuple[str, str]]:
    """Byte pair encoding of `WORDS`: merge the commonest pair, the smallest among equals."""
    words = []
    for word in WORDS:
        parts = [symbols[byte] for byte in word.lower().encode()]
        words.append([*parts[:-1], f"{parts[-1]}</w>"])
    merges = []
    for _ in range(NUM_MERGES):
        counts = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [merge(word, best) for word in words]
    return merges


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def write_published(folder: Path, *, pad: str) -> None:
    """A tokenizer folder with the four files of SDXL's, laid out as they are."""
    symbols: dict[int, str] = bytes_to_unicode()
    assert next(iter(symbols.values())) == "!"
    merges = learn_merges(symbols)
    tokens = [*symbols.values(), *(f"{symbol}</w>" for symbol in symbols.values())]
    tokens += [*dict.fromkeys(left + right for left, right in merges), BOS, EOS]
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special: dict[str, object] = {
        name: {"content": token, **flags}
        for name, token in {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}.items()
    }
    in_config = {
        name: {"__type": "AddedToken", "content": token, **flags}
        for name, token in {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}.items()
    }
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        **in_config,
    }
    vocab = {token: index for index, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    special["pad_token"] = pad
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trio:
    """The published folder of one padding token, and the tokenizers that read it."""

    folder: Path
    ours: ClipTokenizer
    slow: TransformersTokenizer
    fast: TransformersTokenizer


@pytest.fixture(scope="module", params=PADS)
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    folder = tmp_path_factory.mktemp("checkpoint") / "tokenizer"
    write_published(folder, pad=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ftfy", None)  # an installed ftfy would change the slow one
        return Trio(
            folder=folder,
            ours=load_tokenizer(folder),
            slow=CLIPTokenizer.from_pretrained(folder),
            fast=CLIPTokenizerFast.from_pretrained(folder),
        )


def reference_ids(tokenizer: TransformersTokenizer, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(list(texts), padding="max_length", max_length=77, truncation=True)
    return encoded["input_ids"]


def assert_same_ids(ours: ClipTokenizer, slow: TransformersTokenizer, texts: list[str]) -> None:
    tokens = ours.encode(texts)
    rows = zip(texts, tokens.input_ids.tolist(), reference_ids(slow, texts), strict=True)
    for text, actual, expected in rows:
        assert actual == expected, repr(text)
    lengths = [len(slow.tokenize(text)) for text in texts]
    assert tokens.num_truncated == tuple(max(0, length - 75) for length in lengths)


def test_the_vocabulary_has_merges_to_try(trio: Trio) -> None:
    assert len(trio.slow.tokenize("photograph of a cat")) == 4
    assert len(trio.slow.tokenize("zyx")) == 3


def test_special_ids(trio: Trio) -> None:
    for name in ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(trio.ours, name) == getattr(trio.slow, name)


@pytest.mark.parametrize("prompt", [*PROMPTS, *ONLY_FOR_THE_SLOW])
def test_slow_tokenizer(trio: Trio, prompt: str) -> None:
    assert_same_ids(trio.ours, trio.slow, [prompt])


def test_slow_tokenizer_in_a_batch(trio: Trio) -> None:
    assert_same_ids(trio.ours, trio.slow, PROMPTS)


@pytest.mark.slow
def test_slow_tokenizer_on_many_characters(trio: Trio) -> None:
    """Every character up to the ideographs, then one in 64, each between two letters."""
    codes = [code for code in range(sys.maxunicode + 1) if code < 0x3400 or code % 64 == 0]
    words = [f"a{chr(code)}b" for code in codes if not 0xD800 <= code < 0xE000]
    # A word gives at most 6 tokens, so 12 of them fit.
    texts = [" ".join(words[start : start + 12]) for start in range(0, len(words), 12)]
    assert_same_ids(trio.ours, trio.slow, texts)


fragments = st.sampled_from(
    [
        BOS,
        EOS,
        EOS.upper(),
        "<|",
        "|>",
        "!",
        "'",
        "'s",
        "'LL",
        "\u017f",
        "Σ",
        "\u0301",
        "\u0345",
        "\u200d",
        "猫",
    ]
)
texts = st.lists(st.text(max_size=6) | fragments | st.sampled_from(WORDS)).map("".join)


@pytest.mark.slow
@given(texts=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_slow_tokenizer_on_any_text(trio: Trio, texts: list[str]) -> None:
    assert_same_ids(trio.ours, trio.slow, texts)


@pytest.mark.parametrize("prompt", FAST_AGREES)
def test_fast_tokenizer(trio: Trio, prompt: str) -> None:
    assert trio.ours.encode([prompt]).input_ids.tolist() == reference_ids(trio.fast, [prompt])


@pytest.mark.parametrize("prompt", FAST_DIFFERS)
def test_fast_tokenizer_where_it_is_known_to_differ(trio: Trio, prompt: str) -> None:
    assert trio.ours.encode([prompt]).input_ids.tolist() != reference_ids(trio.fast, [prompt])


def test_folder_saved_by_the_slow_tokenizer(trio: Trio, tmp_path: Path) -> None:
    trio.slow.save_pretrained(tmp_path)
    assert "added_tokens_decoder" in (tmp_path / "tokenizer_config.json").read_text("utf-8")
    assert_same_ids(load_tokenizer(tmp_path), trio.slow, PROMPTS)


def test_folder_saved_by_the_fast_tokenizer(trio: Trio, tmp_path: Path) -> None:
    trio.fast.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert_same_ids(load_tokenizer(tmp_path), trio.slow, PROMPTS)


def test_folder_with_an_added_token(trio: Trio, tmp_path: Path) -> None:
    """A textual inversion's placeholder, added by transformers and saved."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(trio.folder, folder)
    slow = CLIPTokenizer.from_pretrained(folder)
    slow.add_tokens(["<toy>", "<toy>_b", "MyStyle"])  # <toy>_1 would be its second vector
    slow.save_pretrained(folder)
    prompts = ["a <toy> on a<toy>_bcat", "MyStyle mystyle aMyStyleb", "<TOY> < toy >"]
    assert_same_ids(load_tokenizer(folder), slow, prompts)
