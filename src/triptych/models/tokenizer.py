"""CLIP's tokenizers without transformers: text to the 77 token ids a text encoder takes.

Words are cut here, as transformers' slow CLIPTokenizer cuts them; the library `tokenizers` only
merges the bytes of one word.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from triptych.errors import CheckpointError, TokenizerError
from triptych.models.configs import read_json, setting
from triptych.models.tokenizer_files import (
    BOS,
    END_OF_WORD,
    EOS,
    read_added_tokens,
    read_special_tokens,
    read_vocabulary,
)
from triptych.types import InputIds

_FIXED_PIECE = re.compile(
    rf"{re.escape(BOS)}|{re.escape(EOS)}|'(?:s|t|re|ve|m|ll|d)", re.IGNORECASE
)
"""What CLIP's pattern finds before it looks at the kinds of characters."""

_CJK_RANGES = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""Characters that are words of their own: BERT's list of CJK ideographs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Encoded texts, one row each.

    Attributes:
        input_ids: start token, content, end token, padding; `model_max_length` wide.
        num_truncated: content tokens of each text that did not fit and were dropped; 0 if none.
    """

    input_ids: InputIds
    num_truncated: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTokenizer:
    """One of SDXL's two CLIP tokenizers; made by `load_tokenizer`.

    Gives the ids of transformers' slow CLIPTokenizer where ftfy is not installed, which is what a
    plain diffusers installation runs. Special tokens written in a text count as such, and
    tokenizer_2 pads with "!", so there every "!" in a text is the padding id 0: as published.

    Known differences to the other CLIP tokenizers:

    - The slow one *with* ftfy repairs the text first: HTML entities and mojibake are decoded, curly
      quotes become straight, full-width forms and ligatures plain. It keeps format and private-use
      characters, and puts no spaces around CJK ideographs.
    - CLIPTokenizerFast keeps control and format characters (zero-width joiners in emoji, soft
      hyphens) as bytes, puts no spaces around CJK ideographs, lower-cases a capital sigma at the
      end of a word as any other, and finds special tokens in capitals behind punctuation too.

    Attributes:
        model_max_length: width of `input_ids`: 77 in SDXL.
        bos_token_id: the start token, 49406 in SDXL.
        eos_token_id: the end token, 49407 in SDXL.
        pad_token_id: padding: 49407 in tokenizer, 0 in tokenizer_2.
        literals: ids of what counts wherever a text spells it exactly: special tokens, and tokens
            of a textual inversion, which may stand for several.
        encode_piece: the ids of one piece of a word, lower-cased, without white space.

    Source:
        transformers 4.57: tokenization_clip.py; Radford et al. 2021, arXiv:2103.00020.
        Same ids as transformers: tests/reference/test_tokenizer_against_transformers.py.
    """

    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    literals: Mapping[str, tuple[int, ...]] = field(repr=False)
    encode_piece: Callable[[str], list[int]] = field(repr=False)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Token ids of some texts, padded and truncated to `model_max_length`.

        Raises:
            TokenizerError: `texts` is a single string, or holds something else than strings.
        """
        _check_texts(texts)
        return self.pad([self.encode_content(text) for text in texts])

    def pad(self, contents: Sequence[Sequence[int]]) -> Tokens:
        """Put start, end and padding around some contents, cut to fit.

        Args:
            contents: token ids of each text, as `encode_content` gives them.
        """
        room = self.model_max_length - 2
        input_ids = np.full(
            (len(contents), self.model_max_length), self.pad_token_id, dtype=np.int64
        )
        for row, content in zip(input_ids, contents, strict=True):
            kept = content[:room]
            row[: len(kept) + 2] = [self.bos_token_id, *kept, self.eos_token_id]
        return Tokens(
            input_ids=input_ids,
            num_truncated=tuple(max(len(content) - room, 0) for content in contents),
        )

    def encode_content(self, text: str) -> list[int]:
        """The ids of one text alone: no start, no end, not cut."""
        # Longest first, so that no literal hides another that it begins.
        by_length = sorted(self.literals, key=len, reverse=True)
        ids: list[int] = []
        for span in re.split(f"({'|'.join(map(re.escape, by_length))})", text):
            if span in self.literals:
                ids.extend(self.literals[span])
                continue
            for word in _normalised_words(span):
                for piece in _split_word(word):
                    ids.extend(self.encode_piece(piece))
        return ids


def load_tokenizer(folder: Path) -> ClipTokenizer:
    """Read the tokenizer in a checkpoint's `tokenizer` or `tokenizer_2` folder.

    The vocabulary comes from vocab.json and merges.txt, as published; tokenizer.json is read only
    where both are absent. They win because the slow CLIPTokenizer, which diffusers loads, reads no
    other vocabulary. Of tokenizer.json only vocabulary, merges and added tokens are taken, not the
    normaliser: the same text gives the same ids whichever files a folder holds.

    Args:
        folder: holds tokenizer_config.json and the vocabulary; special_tokens_map.json and
            added_tokens.json where older tools wrote them.

    Raises:
        CheckpointError: a file is missing, unreadable, or not a CLIP tokenizer's.
    """
    config = read_json(folder / "tokenizer_config.json")
    where = str(folder / "tokenizer_config.json")
    model_max_length = setting(config, "model_max_length", int, where=where)
    if not 2 < model_max_length <= 10_000:
        raise CheckpointError(
            f"{where} 'model_max_length': got {model_max_length}, want the text encoder's number "
            "of positions, 77 in SDXL."
        )
    for side in ("padding_side", "truncation_side"):
        if config.get(side, "right") != "right":
            raise CheckpointError(
                f"{where} {side!r}: got {config[side]!r}, want 'right', as CLIP was trained."
            )
    vocab, merges = read_vocabulary(folder)
    added = read_added_tokens(folder, config)
    special = read_special_tokens(folder, config)
    ids = {**vocab, **added}
    for name, token in special.items():
        if token not in ids:
            raise CheckpointError(
                f"{where} {name!r}: got {token!r}, want a token of the vocabulary."
            )
    return ClipTokenizer(
        model_max_length=model_max_length,
        bos_token_id=ids[special["bos_token"]],
        eos_token_id=ids[special["eos_token"]],
        pad_token_id=ids[special["pad_token"]],
        literals={
            **{token: _vectors(token, added) for token in added},
            **{token: (ids[token],) for token in special.values()},
        },
        encode_piece=_make_piece_encoder(ids, merges, unk_token=special["unk_token"]),
    )


def _vectors(token: str, added: Mapping[str, int]) -> tuple[int, ...]:
    """A token's id and those of `token_1`, `token_2`, ...: the vectors of one textual inversion.

    Source: diffusers 0.39 loaders/textual_inversion.py, _maybe_convert_prompt.
    """
    rest = itertools.takewhile(added.__contains__, (f"{token}_{n}" for n in itertools.count(1)))
    return (added[token], *(added[name] for name in rest))


def _check_texts(texts: Sequence[object]) -> None:
    if isinstance(texts, str):
        raise TokenizerError("texts: got one str, want a sequence of str. Put it in a list.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TokenizerError(f"texts[{index}]: got {type(text).__name__}, want str.")


def _normalised_words(text: str) -> list[str]:
    """Clean, composed, lower-cased words, split at white space and around CJK ideographs."""
    kept = (_clean(character) for character in text)
    # Spaces come before NFC: a compatibility ideograph stands alone even if NFC replaces it.
    words = unicodedata.normalize("NFC", "".join(kept)).split()
    lowered = " ".join(word.lower() for word in words)
    # CLIP's pattern ignores case, and U+0345 is the one mark whose capital is a letter: the pattern
    # takes it for neither letter nor mark and skips it.
    return lowered.replace("\u0345", " ").split()


def _clean(character: str) -> str:
    """The character, spaced if it is an ideograph; nothing for control, format and unassigned."""
    if character in "\t\n\r":
        return " "
    if character == "\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    code = ord(character)
    is_ideograph = any(first <= code <= last for first, last in _CJK_RANGES)
    return f" {character} " if is_ideograph else character


def _split_word(word: str) -> list[str]:
    """Runs of letters, single digits, runs of anything else, and English contractions."""
    pieces = []
    start = 0
    while start < len(word):
        fixed = _FIXED_PIECE.match(word, start)
        end = fixed.end() if fixed else _end_of_run(word, start)
        pieces.append(word[start:end])
        start = end
    return pieces


def _end_of_run(word: str, start: int) -> int:
    kind = _kind(word[start])
    end = start + 1
    while kind != "N" and end < len(word) and _kind(word[end]) == kind:
        end += 1
    return end


def _kind(character: str) -> str:
    """L for letters, N for numbers, empty for the rest: Unicode's general categories."""
    category = unicodedata.category(character)
    return category[0] if category[0] in "LN" else ""


def _make_piece_encoder(
    ids: Mapping[str, int], merges: list[tuple[str, str]], *, unk_token: str
) -> Callable[[str], list[int]]:
    from tokenizers.models import BPE  # it ships no py.typed

    model = BPE(
        vocab=dict(ids),
        merges=merges,
        unk_token=unk_token,
        fuse_unk=False,
        continuing_subword_prefix="",
        end_of_word_suffix=END_OF_WORD,
    )
    symbols = _byte_symbols()

    def encode_piece(piece: str) -> list[int]:
        if piece in (BOS, EOS):  # found in capitals, or after cleaning
            return [ids.get(piece, ids[unk_token])]
        return [token.id for token in model.tokenize("".join(symbols[b] for b in piece.encode()))]

    return encode_piece


def _byte_symbols() -> list[str]:
    """One printable character for each byte: its Latin-1 character, or else one from U+0100 on.

    Source:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(byte if byte in printable else next(spare)) for byte in range(0x100)]
