"""Prompts through the text encoders: which goes where, and what stands for none."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import pytest

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.models.sdxl import SdxlConfig
from triptych.models.tokenizer import ClipTokenizer, load_tokenizer
from triptych.sampling.network import Network
from triptych.sampling.prompt_encoding import EncodedPrompts, Prompts, encode_prompts
from triptych.types import Array, ComponentName, TensorMap

ENCODERS: tuple[ComponentName, ...] = ("text_encoder", "text_encoder_2")
WIDTHS: Mapping[ComponentName, int] = {"text_encoder": 3, "text_encoder_2": 5}
PICTURE_SIZE = (128, 96)


@final
class FakeEncoder:
    """Gives every token's id back as its embedding, and their sum as the pooled one."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.calls = 0

    def run(self, feed: TensorMap) -> dict[str, Array]:
        self.calls += 1
        ids = feed["input_ids"].astype(np.float32)
        return {
            "hidden_states": np.repeat(ids[:, :, None], self._width, axis=2) + self._width,
            "text_embeds": ids.sum(axis=1, keepdims=True) + np.arange(4, dtype=np.float32),
        }


@pytest.fixture
def config(checkpoint_bundle: Bundle) -> SdxlConfig:
    return checkpoint_bundle.config


@pytest.fixture(scope="session")
def tokenizers(checkpoint: Path) -> dict[ComponentName, ClipTokenizer]:
    return {
        "text_encoder": load_tokenizer(checkpoint / "tokenizer"),
        "text_encoder_2": load_tokenizer(checkpoint / "tokenizer_2"),
    }


def encode(
    prompts: Prompts, tokenizers: Mapping[ComponentName, ClipTokenizer], config: SdxlConfig
) -> EncodedPrompts:
    networks: dict[ComponentName, Network] = {
        name: FakeEncoder(WIDTHS[name]) for name in config.text_encoders
    }
    return encode_prompts(prompts, networks=networks, tokenizers=tokenizers, config=config)


def test_both_encoders_are_joined_token_by_token(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    encoded = encode(Prompts(prompt=("a cat", "a dog!")), tokenizers, config)

    states = encoded.encoder_hidden_states
    assert states.shape == (2, 77, 3 + 5)
    ids = {name: tokenizers[name].encode(["a cat", "a dog!"]).input_ids for name in ENCODERS}
    np.testing.assert_array_equal(states[:, :, 0], ids["text_encoder"] + 3)
    np.testing.assert_array_equal(states[:, :, -1], ids["text_encoder_2"] + 5)
    np.testing.assert_array_equal(encoded.text_embeds[:, 0], ids["text_encoder_2"].sum(axis=1))
    assert encoded.input_ids.keys() == ids.keys()
    np.testing.assert_array_equal(encoded.input_ids["text_encoder_2"], ids["text_encoder_2"])


def test_second_encoder_takes_its_own_prompt(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    plain = encode(Prompts(prompt=("a cat",)), tokenizers, config)
    mixed = encode(Prompts(prompt=("a cat",), prompt_2=("a dog",)), tokenizers, config)
    dog = encode(Prompts(prompt=("a dog",)), tokenizers, config)

    np.testing.assert_array_equal(
        mixed.encoder_hidden_states[..., :3], plain.encoder_hidden_states[..., :3]
    )
    np.testing.assert_array_equal(
        mixed.encoder_hidden_states[..., 3:], dog.encoder_hidden_states[..., 3:]
    )
    np.testing.assert_array_equal(mixed.text_embeds, dog.text_embeds)
    assert not np.array_equal(mixed.text_embeds, plain.text_embeds)


def test_no_negative_prompt_is_zeros_where_the_model_says_so(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    forced = replace(config, force_zeros_for_empty_prompt=True)
    encoded = encode(Prompts(prompt=("a cat", "a dog")), tokenizers, forced)
    assert encoded.negative_encoder_hidden_states.shape == encoded.encoder_hidden_states.shape
    assert not encoded.negative_encoder_hidden_states.any()
    assert not encoded.negative_text_embeds.any()


@pytest.mark.parametrize("force_zeros", [True, False])
def test_an_empty_negative_prompt_is_encoded(
    tokenizers: dict[ComponentName, ClipTokenizer],
    config: SdxlConfig,
    force_zeros: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    chosen = replace(config, force_zeros_for_empty_prompt=force_zeros)
    encoded = encode(Prompts(prompt=("a cat",), negative_prompt=("",)), tokenizers, chosen)
    empty = encode(Prompts(prompt=("",)), tokenizers, chosen)
    np.testing.assert_array_equal(
        encoded.negative_encoder_hidden_states, empty.encoder_hidden_states
    )
    np.testing.assert_array_equal(encoded.negative_text_embeds, empty.text_embeds)


def test_no_negative_prompt_is_the_empty_one_where_zeros_are_not_forced(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    chosen = replace(config, force_zeros_for_empty_prompt=False)
    without = encode(Prompts(prompt=("a cat", "x")), tokenizers, chosen)
    empty = encode(Prompts(prompt=("a cat", "x"), negative_prompt=("", "")), tokenizers, chosen)
    np.testing.assert_array_equal(without.negative_text_embeds, empty.negative_text_embeds)
    assert without.negative_text_embeds.any()


def test_second_encoder_takes_its_own_negative_prompt(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    prompts = Prompts(prompt=("a cat",), negative_prompt=("fog",), negative_prompt_2=("rain",))
    encoded = encode(prompts, tokenizers, config)
    expected = encode(Prompts(prompt=("fog",), prompt_2=("rain",)), tokenizers, config)
    np.testing.assert_array_equal(
        encoded.negative_encoder_hidden_states, expected.encoder_hidden_states
    )
    np.testing.assert_array_equal(encoded.negative_text_embeds, expected.text_embeds)


def test_cut_tokens_are_counted(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    encoded = encode(Prompts(prompt=("a " * 80, "a")), tokenizers, config)
    assert encoded.num_truncated == {"text_encoder": (5, 0), "text_encoder_2": (5, 0)}


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        (Prompts(prompt=("a", "b"), prompt_2=("a",)), "prompt_2"),
        (Prompts(prompt=("a",), negative_prompt=("a", "b")), "negative_prompt"),
        (Prompts(prompt=("a",), negative_prompt=()), "negative_prompt"),
        (
            Prompts(prompt=("a",), negative_prompt=("b",), negative_prompt_2=("a", "b")),
            "negative_prompt_2",
        ),
    ],
)
def test_counts_that_differ(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig, prompts: Prompts, name: str
) -> None:
    with pytest.raises(UsageError, match=rf"^{name}: got \d, want {len(prompts.prompt)}"):
        encode(prompts, tokenizers, config)


def test_no_prompt(tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig) -> None:
    with pytest.raises(UsageError, match="prompt: got none"):
        encode(Prompts(prompt=()), tokenizers, config)


# --- weighting -----------------------------------------------------------------------------------


def test_parentheses_are_text_unless_weighting_is_asked_for(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    encoded = encode(Prompts(prompt=("a (cat)1.3 :)",)), tokenizers, config)
    ids = tokenizers["text_encoder"].encode(["a (cat)1.3 :)"]).input_ids
    np.testing.assert_array_equal(encoded.input_ids["text_encoder"], ids)


def test_weighting_leaves_plain_prompts_bit_for_bit(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    prompts = Prompts(
        prompt=("a cat,dog  wow,,,", "a " * 80),
        prompt_2=("hot-dog - x", "b"),
        negative_prompt=("fog", ""),
    )
    plain = encode(prompts, tokenizers, config)
    weighted = encode(replace(prompts, prompt_weighting=True), tokenizers, config)
    for name in ("encoder_hidden_states", "text_embeds"):
        for side in (name, f"negative_{name}"):
            np.testing.assert_array_equal(getattr(weighted, side), getattr(plain, side))
    for encoder in ENCODERS:
        np.testing.assert_array_equal(weighted.input_ids[encoder], plain.input_ids[encoder])
    assert (
        weighted.num_truncated
        == plain.num_truncated
        == dict.fromkeys(ENCODERS, (0, 5)) | {"text_encoder_2": (0, 0)}
    )


def test_weights_reach_both_encoders_and_both_sides(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    text = "a (cat)1.5"
    prompts = Prompts(prompt=(text,), negative_prompt=(text,), prompt_weighting=True)
    encoded = encode(prompts, tokenizers, config)
    states = encoded.encoder_hidden_states
    np.testing.assert_array_equal(encoded.negative_encoder_hidden_states, states)
    for encoder, channels in zip(ENCODERS, (slice(0, 3), slice(3, 8)), strict=True):
        ids, empty = tokenizers[encoder].encode(["a cat", ""]).input_ids.astype(np.float32)
        weights = np.ones(77)
        weights[2 : 2 + len(tokenizers[encoder].encode_content("cat"))] = 1.5
        expected = WIDTHS[encoder] + empty + (ids - empty) * weights
        for channel in states[0, :, channels].T:
            np.testing.assert_allclose(channel, expected, rtol=1e-6)


def test_the_pooled_embedding_is_of_the_prompt_as_written(
    tokenizers: dict[ComponentName, ClipTokenizer], config: SdxlConfig
) -> None:
    for text in ("a (cat)1.5", '("a cat", "a dog").blend(1, 1)', "a (cat)1"):
        weighted = encode(Prompts(prompt=(text,), prompt_weighting=True), tokenizers, config)
        plain = encode(Prompts(prompt=(text,)), tokenizers, config)
        np.testing.assert_array_equal(weighted.text_embeds, plain.text_embeds)
