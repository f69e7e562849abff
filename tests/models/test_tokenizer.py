"""CLIP's tokenizer on a vocabulary small enough to count by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from triptych.errors import CheckpointError, TokenizerError
from triptych.models.tokenizer import ClipTokenizer, load_tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = [("c", "a"), ("ca", "t</w>"), ("'", "s</w>")]


def make_vocab() -> dict[str, int]:
    """All byte symbols from "!" = 0 on, again as ends of words, the merges, start and end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(code) for code in [*printable, *range(0x100, 0x100 + 256 - len(printable))]]
    words = [f"{symbol}</w>" for symbol in symbols]
    merged = [left + right for left, right in MERGES]
    return {token: index for index, token in enumerate([*symbols, *words, *merged, BOS, EOS])}


VOCAB = make_vocab()


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as SDXL's tokenizer_2 is published: pad "!", special tokens as objects."""
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": {"content": BOS, **flags}, "eos_token": {"content": EOS, **flags}}
    lines = ["#version: 0.2", *(" ".join(merge) for merge in MERGES), ""]
    write_json(tmp_path / "vocab.json", VOCAB)
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 12, "pad_token": EOS})
    write_json(tmp_path / "special_tokens_map.json", {**special, "pad_token": "!"})
    return tmp_path


@pytest.fixture
def tokenizer(folder: Path) -> ClipTokenizer:
    return load_tokenizer(folder)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def write_tokenizer_json(folder: Path, **changes: object) -> None:
    """What newer tools save instead of vocab.json and merges.txt."""
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": VOCAB, "merges": MERGES}
    write_json(folder / "tokenizer.json", {"added_tokens": [], "model": {**model, **changes}})


def content(tokenizer: ClipTokenizer, text: str) -> list[str]:
    """The tokens between start and end, as text."""
    tokens = {index: token for token, index in VOCAB.items()}
    (row,) = tokenizer.encode([text]).input_ids.tolist()
    end = row.index(tokenizer.eos_token_id, 1) if tokenizer.eos_token_id in row[1:] else len(row)
    return [tokens[index] for index in row[1:end]]


def test_ids_of_the_special_tokens(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.model_max_length == 12
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (VOCAB[BOS], VOCAB[EOS])
    assert tokenizer.pad_token_id == 0


def test_encode_pads_to_the_full_width(tokenizer: ClipTokenizer) -> None:
    tokens = tokenizer.encode(["", "cat"])
    bos, eos, cat = VOCAB[BOS], VOCAB[EOS], VOCAB["cat</w>"]
    assert tokens.input_ids.dtype == np.int64
    assert tokens.input_ids.tolist() == [[bos, eos, *[0] * 10], [bos, cat, eos, *[0] * 9]]
    assert tokens.num_truncated == (0, 0)


def test_no_texts_give_no_rows(tokenizer: ClipTokenizer) -> None:
    tokens = tokenizer.encode([])
    assert tokens.input_ids.shape == (0, 12)
    assert tokens.num_truncated == ()


@pytest.mark.parametrize(("words", "dropped"), [(9, 0), (10, 0), (11, 1), (25, 15)])
def test_encode_truncates_and_says_how_much(
    tokenizer: ClipTokenizer, words: int, dropped: int
) -> None:
    tokens = tokenizer.encode([" ".join(["cat"] * words), "cat"])
    (row, _) = tokens.input_ids.tolist()
    kept = words - dropped
    assert row[: kept + 2] == [VOCAB[BOS], *[VOCAB["cat</w>"]] * kept, VOCAB[EOS]]
    assert tokens.num_truncated == (dropped, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cats", ["ca", "t", "s</w>"]),
        ("  CAT\n\tcat ", ["cat</w>", "cat</w>"]),
        ("cat's", ["cat</w>", "'s</w>"]),
        ("12", ["1</w>", "2</w>"]),
        ("a1b", ["a</w>", "1</w>", "b</w>"]),
        ("?-,", ["?", "-", ",</w>"]),
        ("e\u0301", ["Ã", "©</w>"]),  # composed first: U+00E9 is the bytes C3 A9
        ("c\u200bat\x00\x07\ufffd", ["cat</w>"]),
        ("a\u00a0b", ["a</w>", "b</w>"]),
        ("猫猫", ["ç", "Į", "«</w>", "ç", "Į", "«</w>"]),
        ("cat!cat", ["cat</w>", "!", "cat</w>"]),  # the padding token splits a word
        (f"cat{BOS}cat", ["cat</w>", BOS, "cat</w>"]),
        ("<|STARTOFTEXT|>", [BOS]),
    ],
)
def test_tokens(tokenizer: ClipTokenizer, text: str, expected: list[str]) -> None:
    assert content(tokenizer, text) == expected


def test_tokens_of_the_end_token_in_a_text(tokenizer: ClipTokenizer) -> None:
    (row,) = tokenizer.encode([f"cat {EOS} cat"]).input_ids.tolist()
    cat, eos = VOCAB["cat</w>"], VOCAB[EOS]
    assert row[:5] == [VOCAB[BOS], cat, eos, cat, eos]


def test_padding_with_the_end_token(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == VOCAB[EOS]
    assert content(tokenizer, "cat!") == ["cat</w>", "!</w>"]


def test_one_string_is_not_a_list_of_texts(tokenizer: ClipTokenizer) -> None:
    with pytest.raises(TokenizerError, match="Put it in a list"):
        tokenizer.encode("cat")


def test_text_that_is_not_a_string(tokenizer: ClipTokenizer) -> None:
    texts = ["cat", None]
    with pytest.raises(TokenizerError, match=r"texts\[1\]: got NoneType, want str"):
        ClipTokenizer.encode.__wrapped__(tokenizer, texts)  # type: ignore[attr-defined]  # untyped


@pytest.mark.parametrize("as_text", [True, False])
def test_tokenizer_json_alone(folder: Path, *, as_text: bool) -> None:
    expected = load_tokenizer(folder).encode(["cat's 12"]).input_ids
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    write_tokenizer_json(folder, merges=[" ".join(merge) if as_text else merge for merge in MERGES])
    np.testing.assert_array_equal(load_tokenizer(folder).encode(["cat's 12"]).input_ids, expected)


def test_vocab_and_merges_win_over_tokenizer_json(folder: Path) -> None:
    write_tokenizer_json(folder, merges=[])
    assert content(load_tokenizer(folder), "cat") == ["cat</w>"]


def test_tokenizer_json_does_not_mend_half_a_vocabulary(folder: Path) -> None:
    write_tokenizer_json(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt: got no such file"):
        load_tokenizer(folder)


def test_tokenizer_json_of_another_kind(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    write_tokenizer_json(folder, type="WordPiece")
    with pytest.raises(CheckpointError, match="'WordPiece'"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: got no such file"):
        load_tokenizer(folder)


@pytest.mark.parametrize("source", ["tokenizer_config.json", "added_tokens.json", "tokenizer.json"])
def test_added_tokens(folder: Path, source: str) -> None:
    index = len(VOCAB)
    if source == "tokenizer_config.json":
        change_config(folder, added_tokens_decoder={str(index): {"content": "<toy>"}})
    elif source == "added_tokens.json":
        write_json(folder / source, {"<toy>": index})
    else:
        write_json(folder / source, {"added_tokens": [{"id": index, "content": "<toy>"}]})
    tokenizer = load_tokenizer(folder)
    (row,) = tokenizer.encode(["cat<toy>cat"]).input_ids.tolist()
    cat = VOCAB["cat</w>"]
    assert row[:5] == [VOCAB[BOS], cat, index, cat, VOCAB[EOS]]


def test_added_token_without_an_id(folder: Path) -> None:
    write_json(folder / "tokenizer.json", {"added_tokens": ["<toy>"]})
    with pytest.raises(CheckpointError, match="the token id None"):
        load_tokenizer(folder)


def test_added_tokens_decoder_replaces_the_special_tokens_map(folder: Path) -> None:
    # As transformers: the map is of an older folder layout and is not read beside it.
    change_config(folder, added_tokens_decoder={str(VOCAB[EOS]): {"content": EOS}})
    assert load_tokenizer(folder).pad_token_id == VOCAB[EOS]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_max_length": 10**30}, "number of positions"),
        ({"model_max_length": "77"}, "'model_max_length': got '77', want a positive int"),
        ({"padding_side": "left"}, "'padding_side': got 'left', want 'right'"),
        ({"bos_token": "<s>", "added_tokens_decoder": {}}, "'bos_token': got '<s>'"),
        ({"pad_token": None, "added_tokens_decoder": {}}, "got None, want a token"),
        ({"added_tokens_decoder": {"x": {"content": "x"}}}, "the token id 'x'"),
        ({"added_tokens_decoder": {"1": {"content": "x", "rstrip": True}}}, "got rstrip set"),
    ],
)
def test_config_that_is_not_clips(folder: Path, changes: dict[str, object], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("line", ["c z", "c", "c a t"])
def test_merge_that_does_not_fit_the_vocabulary(folder: Path, line: str) -> None:
    (folder / "merges.txt").write_text(f"#version: 0.2\n{line}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="got the merge"):
        load_tokenizer(folder)


def test_vocabulary_without_numbers(folder: Path) -> None:
    write_json(folder / "vocab.json", {"a": "b"})
    with pytest.raises(CheckpointError, match="a vocabulary without ids"):
        load_tokenizer(folder)


def test_merges_that_are_not_text(folder: Path) -> None:
    (folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="want readable text"):
        load_tokenizer(folder)
