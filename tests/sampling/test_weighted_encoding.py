"""Compel's arithmetic on an encoder whose states depend on everything before them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import pytest

from triptych.models.tokenizer import ClipTokenizer, load_tokenizer
from triptych.sampling.prompt_weighting import Fragment, parse_prompt
from triptych.sampling.weighted_encoding import WeightedStates, encode_weighted
from triptych.types import Array, InputIds, TensorMap

WIDTH = 4


def causal_states(input_ids: InputIds) -> Array:
    """Each token's state: a mean over it and those before, turned by its position."""
    tokens = input_ids.shape[1]
    position = np.arange(tokens)
    waves = np.cos(input_ids[:, :, None] * 0.37 * np.arange(1, WIDTH + 1))
    means = waves.cumsum(axis=1) / (position + 1)[:, None]
    states: Array = means + 0.1 * np.sin(position)[:, None]
    return states


@final
class FakeEncoder:
    """Gives `causal_states` as float32 and counts how often it ran."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.rows.append(len(feed["input_ids"]))
        return {"hidden_states": causal_states(feed["input_ids"]).astype(np.float32)}


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> ClipTokenizer:
    return load_tokenizer(checkpoint / "tokenizer_2")


def encode(
    tokenizer: ClipTokenizer, *prompts: str, network: FakeEncoder | None = None
) -> WeightedStates:
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return encode_weighted(parsed, network=network or FakeEncoder(), tokenizer=tokenizer)


def by_hand(tokenizer: ClipTokenizer, fragments: Sequence[Fragment]) -> Array:
    """The published formula in float64, one token at a time."""

    def of(kept: Sequence[Fragment]) -> Array:
        content = [(token, f.weight) for f in kept for token in tokenizer.encode_content(f.text)]
        ids = [tokenizer.bos_token_id, *(token for token, _ in content[:75])]
        ids += [tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (77 - len(ids))
        weights = [1.0, *(weight for _, weight in content[:75])]
        weights += [1.0] * (77 - len(weights))
        own = causal_states(np.array([ids]))[0]
        empty = causal_states(tokenizer.encode([""]).input_ids)[0]
        return np.array([e + w * (z - e) for z, e, w in zip(own, empty, weights, strict=True)])

    total, sum_of_pulls = of(fragments), 1.0
    for index, fragment in enumerate(fragments):
        if fragment.weight < 1:
            pull = math.tan((1 - max(fragment.weight, 1e-5)) * math.pi / 2)
            total = total + pull * of([*fragments[:index], *fragments[index + 1 :]])
            sum_of_pulls += pull
    summed: Array = total / sum_of_pulls
    return summed


@pytest.mark.parametrize(
    "prompt",
    [
        "a (red)1.3 cat",
        "a red++ (wet cat)+++",
        "a (red)0.5 cat",
        "a red- (wet (cat)1.5)0.8, now",
        "a (red)0 cat",
        "(cat)0.5",
        "(cat)0",
        "a " * 70 + "(red cat and dog and bird)1.3 more",
        "(red)0.5 " + "a " * 80,
        "(red)1.2 " + "a " * 74 + "(cat)0.3",
    ],
)
def test_weights_against_the_formula(tokenizer: ClipTokenizer, prompt: str) -> None:
    (fragments,) = parse_prompt(prompt).texts
    states = encode(tokenizer, prompt).hidden_states
    assert states.dtype == np.float32
    # At weight 0 the pull is 6e4: float32's rounding of the shares shows.
    np.testing.assert_allclose(states[0], by_hand(tokenizer, fragments), atol=5e-7, rtol=0)


# Compel 2.4.0 gave these for FakeEncoder's states and the same token ids, channel 1 of the first
# tokens: EmbeddingsProvider(truncate=True, downweight_mode=DownweightMode.REMOVE,
# returned_embeddings_type=PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED), and apply_embedding_weights.
COMPEL = {
    "a red- (wet (cat)1.5)0.8, now": [
        *(-0.9865902066230774, -0.5993556976318359, -0.5073676705360413, -0.2514124810695648),
        *(-0.2588743567466736, -0.2677344083786011, -0.2263575792312622, -0.053174253553152084),
    ],
    '("a (cat)1.3", "a dog-").blend(1, 0.5)': [
        *(-0.9865903258323669, -0.5993556976318359, -0.25061798095703125, -0.39658576250076294),
        *(-0.20423845946788788, -0.03635760769248009, 0.16594545543193817, 0.36034977436065674),
    ],
}


@pytest.mark.parametrize("prompt", COMPEL)
def test_weights_against_compels_numbers(tokenizer: ClipTokenizer, prompt: str) -> None:
    states = encode(tokenizer, prompt).hidden_states
    np.testing.assert_allclose(states[0, :8, 1], COMPEL[prompt], atol=1e-7, rtol=0)


def test_half_a_weight_is_between_the_text_and_the_text_without(tokenizer: ClipTokenizer) -> None:
    with_cat, without = encode(tokenizer, "a (cat)0.5", "a").hidden_states
    whole = by_hand(tokenizer, [Fragment(text="a", weight=1.0), Fragment(text="cat", weight=1.0)])
    empty = by_hand(tokenizer, [Fragment(text="", weight=1.0)])
    scaled = whole.copy()
    cat = slice(2, 2 + len(tokenizer.encode_content("cat")))  # behind the start and "a"
    scaled[cat] = empty[cat] + 0.5 * (whole[cat] - empty[cat])
    np.testing.assert_allclose(with_cat, (scaled + without) / 2, atol=5e-7)


def test_weight_0_is_the_text_without_the_fragment(tokenizer: ClipTokenizer) -> None:
    (lacking,) = encode(tokenizer, "a (red)0 cat").hidden_states
    (without,) = encode(tokenizer, "a cat").hidden_states
    np.testing.assert_allclose(lacking, without, atol=1e-4)


@pytest.mark.parametrize("prompt", ["a (cat)1.0", "a (cat)", '(a "cat")1', "a (cat)+ dog"])
def test_a_weight_of_1_leaves_every_bit(tokenizer: ClipTokenizer, prompt: str) -> None:
    plain = prompt.translate(str.maketrans("", "", '()"1.0+'))
    own = causal_states(tokenizer.encode([plain]).input_ids).astype(np.float32)
    states = encode(tokenizer, prompt).hidden_states
    weighted = [2] if "+" in prompt else []
    kept = np.delete(np.arange(77), weighted)
    np.testing.assert_array_equal(states[:, kept], own[:, kept])
    assert all(not np.array_equal(states[0, at], own[0, at]) for at in weighted)


def test_a_blend_is_the_mean_by_its_shares(tokenizer: ClipTokenizer) -> None:
    network = FakeEncoder()
    blended = encode(tokenizer, '("a cat", "a dog+", "b").blend(1, 2, 1)', "plain", network=network)
    cat, dog, other, plain = encode(tokenizer, "a cat", "a dog+", "b", "plain").hidden_states
    expected = np.stack([0.25 * cat + 0.5 * dog + 0.25 * other, plain])
    np.testing.assert_allclose(blended.hidden_states, expected, atol=5e-7)
    np.testing.assert_array_equal(blended.hidden_states[1], plain)
    assert blended.input_ids.shape == (4, 77)
    assert network.rows == [4, 1]


@pytest.mark.parametrize(
    ("prompts", "rows"),
    [
        (["a cat", "a (dog)"], [2]),
        (["a cat+", "a dog"], [2, 1]),
        (["a cat-", "(red)0.5 (dog)0.5"], [2, 3]),
        (["a (red)0.5 (cat)0.7"], [1, 3]),
        (["a " * 75 + "cat-"], [1]),
        (["a+ " + "a " * 75 + "cat-"], [1, 1]),
    ],
)
def test_the_encoder_runs_as_seldom_as_can_be(
    tokenizer: ClipTokenizer, prompts: list[str], rows: list[int]
) -> None:
    network = FakeEncoder()
    encode(tokenizer, *prompts, network=network)
    assert network.rows == rows


def test_cut_tokens_are_counted_by_prompt(tokenizer: ClipTokenizer) -> None:
    long, longer = "a " * 80, "a " * 90
    encoded = encode(tokenizer, f"({long})1.2", f'("b", "{longer}", "{long}").blend()', "c")
    assert encoded.num_truncated == (5, 15, 0)
