"""A small CLIP byte-pair vocabulary, learned here from a few lines of prompt words.

The procedure is CLIP's own; only the number of merges and the text they come from are smaller.
No framework is needed: `transformers.CLIPTokenizer` reads the two files this module writes.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

Merge: TypeAlias = tuple[str, str]
"""Two symbols that become one; `</w>` marks a symbol that ends a word."""

START_TOKEN = "<|startoftext|>"  # noqa: S105  # a vocabulary entry, not a secret
END_TOKEN = "<|endoftext|>"  # noqa: S105  # a vocabulary entry, not a secret

NUM_MERGES = 384

PROMPT_WORDS = """
a photo of an astronaut riding a horse on the moon
a photo of a cat sitting on a red chair in the garden
a photo of a dog running along the beach at sunset
a close up portrait of an old man with a white beard and a blue hat
a portrait of a young woman in a green dress holding a yellow flower
an oil painting of a small house by the river in the style of monet
a watercolor painting of mountains and a lake in the morning light
a digital illustration of a robot standing in a futuristic city at night
a detailed drawing of a castle on a hill under a stormy sky
a wide angle photograph of a forest road in autumn with orange leaves
a black and white photograph of a busy street in the rain
a large blue cube on top of a small red sphere beside a green cone
three purple triangles and two yellow circles on a white background
a golden dragon flying over the ocean with fire and smoke
a bowl of fresh fruit with apples oranges and grapes on a wooden table
a cup of coffee and a slice of chocolate cake by the window
a vintage car parked in front of a modern glass building
a bird with bright feathers sitting on the branch of a tree
a knight in shining armor fighting a giant in the snow
a train crossing a stone bridge between two mountains
cinematic lighting highly detailed sharp focus high resolution masterpiece
best quality soft light warm colors beautiful landscape concept art
low quality blurry worst quality bad anatomy deformed ugly watermark text
"""


def byte_symbols() -> tuple[str, ...]:
    """One printable character for each byte, in the order of CLIP's vocabulary: "!" is first.

    Source:
        openai/CLIP, clip/simple_tokenizer.py, bytes_to_unicode: printable Latin-1 stands for
        itself and comes first; every other byte follows as the next character from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    num_others = 256 - len(printable)
    return tuple(chr(code) for code in (*printable, *range(0x100, 0x100 + num_others)))


def learn_merges(text: str, *, num_merges: int) -> tuple[Merge, ...]:
    """The most frequent pairs of neighbouring symbols, merged one after the other.

    Equal counts are settled by the pair's spelling. `tokenizers.trainers.BpeTrainer` settles them
    by the order of a randomly seeded hash map, so that two runs of it disagree.

    Args:
        text: lower-case ASCII words, split at white space.
        num_merges: how many merges to learn; fewer when every word is a single symbol before.

    Source:
        Sennrich et al. 2016, arXiv:1508.07909, Algorithm 1, with CLIP's `</w>` on the last symbol.
    """
    counts = Counter(text.split())
    words = {word: (*word[:-1], f"{word[-1]}</w>") for word in counts}
    merges: list[Merge] = []
    while len(merges) < num_merges:
        pairs: Counter[Merge] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merged(symbols, best) for word, symbols in words.items()}
    return tuple(merges)


def _merged(symbols: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        # A symbol just merged cannot be the left half again: it is longer than pair[0].
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def write_vocabulary(
    folder: Path, *, vocab_size: int | None = None, text: str = PROMPT_WORDS
) -> None:
    """Write vocab.json and merges.txt, in CLIP's order.

    The order is: 256 bytes, the same 256 ending a word, the merges, start, end. That the end token
    has the highest id is what CLIP's pooling by argmax relies on.

    Args:
        folder: gets the files.
        vocab_size: fill up to so many tokens, before start, with some that no text has.
        text: what the merges are learned from: see `learn_merges`.
    """
    symbols = byte_symbols()
    merges = learn_merges(text, num_merges=NUM_MERGES)
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [left + right for left, right in merges]
    num_unused = 0 if vocab_size is None else vocab_size - len(tokens) - 2
    tokens += [f"<|unused{index}|>" for index in range(num_unused)]
    tokens += [START_TOKEN, END_TOKEN]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
