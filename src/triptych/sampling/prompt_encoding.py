"""From prompts to what the text encoders give for them.

Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, encode_prompt.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.bundle.clip_skip import SKIPPED_HIDDEN_STATES
from triptych.errors import UsageError
from triptych.models.sdxl import SdxlConfig
from triptych.models.tokenizer import ClipTokenizer
from triptych.sampling.network import Network
from triptych.sampling.prompt_weighting import parse_prompt
from triptych.sampling.weighted_encoding import WeightedStates, encode_weighted
from triptych.types import ComponentName, HiddenStates, TextEmbeds, TextIds


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is asked for, one entry a picture before `num_images_per_prompt`.

    Attributes:
        prompt: for text_encoder.
        prompt_2: for text_encoder_2 beside text_encoder; None takes `prompt`.
        negative_prompt: the unconditional side; None is not the same as "": see
            `force_zeros_for_empty_prompt`.
        negative_prompt_2: for text_encoder_2; None takes `negative_prompt`.
        prompt_weighting: read Compel's syntax in all of them: see `prompt_weighting.parse_prompt`.
            Otherwise parentheses and signs are text.
        clip_skip: layers to skip before the penultimate hidden state; 0 is SDXL's own. As in
            diffusers, of the conditional side's hidden states only.
    """

    prompt: tuple[str, ...]
    prompt_2: tuple[str, ...] | None = None
    negative_prompt: tuple[str, ...] | None = None
    negative_prompt_2: tuple[str, ...] | None = None
    prompt_weighting: bool = False
    clip_skip: int = 0

    @property
    def count(self) -> int:
        """Prompts, before `num_images_per_prompt`."""
        return len(self.prompt)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompts:
    """Prompts through the text encoders, one row each.

    Attributes:
        encoder_hidden_states: token embeddings of both encoders joined, conditional side.
        text_embeds: pooled embeddings, conditional side.
        negative_encoder_hidden_states: unconditional side.
        negative_text_embeds: unconditional side.
        input_ids: the token ids of each encoder, conditional side; for the record. A blend has
            a row for each of its texts.
        num_truncated: content tokens cut from each prompt, by encoder.
    """

    encoder_hidden_states: HiddenStates
    text_embeds: TextEmbeds
    negative_encoder_hidden_states: HiddenStates
    negative_text_embeds: TextEmbeds
    input_ids: Mapping[ComponentName, TextIds]
    num_truncated: Mapping[ComponentName, tuple[int, ...]]


def encode_prompts(
    prompts: Prompts,
    *,
    networks: Mapping[ComponentName, Network],
    tokenizers: Mapping[ComponentName, ClipTokenizer],
    config: SdxlConfig,
) -> EncodedPrompts:
    """Run the text encoders.

    Without a negative prompt the unconditional side is zeros where the model's
    `force_zeros_for_empty_prompt` says so, as in SDXL base; otherwise "" is encoded.

    Args:
        prompts: what is asked for.
        networks: the text encoders, open; with `clip_skip` they give the skipped state too.
        tokenizers: theirs, by component.
        config: the model's numbers.

    Raises:
        UsageError: the prompts' counts differ, or their weighting cannot be read.
    """
    count = _check_counts(prompts)
    encode = _encode_weighted if prompts.prompt_weighting else _encode
    texts = _by_encoder(prompts.prompt, prompts.prompt_2, tokenizers)
    states = SKIPPED_HIDDEN_STATES if prompts.clip_skip else "hidden_states"
    positive = encode(texts, networks=networks, tokenizers=tokenizers, states=states)
    if prompts.negative_prompt is None and config.force_zeros_for_empty_prompt:
        negative_states = np.zeros_like(positive.encoder_hidden_states)
        negative_embeds = np.zeros_like(positive.text_embeds)
    else:
        first = prompts.negative_prompt or ("",) * count
        negative = encode(
            _by_encoder(first, prompts.negative_prompt_2, tokenizers),
            networks=networks,
            tokenizers=tokenizers,
        )
        negative_states, negative_embeds = negative.encoder_hidden_states, negative.text_embeds
    return EncodedPrompts(
        encoder_hidden_states=positive.encoder_hidden_states,
        text_embeds=positive.text_embeds,
        negative_encoder_hidden_states=negative_states,
        negative_text_embeds=negative_embeds,
        input_ids=positive.input_ids,
        num_truncated=positive.num_truncated,
    )


def _by_encoder(
    first: tuple[str, ...], second: tuple[str, ...] | None, encoders: Iterable[ComponentName]
) -> dict[ComponentName, tuple[str, ...]]:
    """Which texts each encoder gets; a refiner, which has one, gets the first.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl_img2img.py, encode_prompt, which pairs
    [prompt, prompt_2] with the text encoders that are there.
    """
    return dict(zip(encoders, (first, second or first), strict=False))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    encoder_hidden_states: HiddenStates
    text_embeds: TextEmbeds
    input_ids: Mapping[ComponentName, TextIds]
    num_truncated: Mapping[ComponentName, tuple[int, ...]]


def _encode(
    texts: Mapping[ComponentName, tuple[str, ...]],
    *,
    networks: Mapping[ComponentName, Network],
    tokenizers: Mapping[ComponentName, ClipTokenizer],
    states: str = "hidden_states",
) -> _Encoded:
    tokens = {name: tokenizer.encode(texts[name]) for name, tokenizer in tokenizers.items()}
    outputs = {name: networks[name].run({"input_ids": tokens[name].input_ids}) for name in tokens}
    return _Encoded(
        encoder_hidden_states=np.concatenate(
            [output[states] for output in outputs.values()], axis=-1
        ),
        text_embeds=outputs["text_encoder_2"]["text_embeds"],
        input_ids={name: encoded.input_ids for name, encoded in tokens.items()},
        num_truncated={name: encoded.num_truncated for name, encoded in tokens.items()},
    )


def _encode_weighted(
    texts: Mapping[ComponentName, tuple[str, ...]],
    *,
    networks: Mapping[ComponentName, Network],
    tokenizers: Mapping[ComponentName, ClipTokenizer],
    states: str = "hidden_states",
) -> _Encoded:
    """As `_encode`, with Compel's weights on the token embeddings.

    The pooled embedding is that of the prompt as it is written, signs and parentheses included.

    Source:
        Compel 2.4.0: Compel.build_conditioning_tensor gives get_pooled_embeddings the raw text.
    """
    encoded: dict[ComponentName, WeightedStates] = {}
    for name, tokenizer in tokenizers.items():
        prompts = [parse_prompt(text) for text in texts[name]]
        encoded[name] = encode_weighted(
            prompts, network=networks[name], tokenizer=tokenizer, states=states
        )
    pooled = encoded["text_encoder_2"].outputs
    written = tokenizers["text_encoder_2"].encode(texts["text_encoder_2"]).input_ids
    if not np.array_equal(written, encoded["text_encoder_2"].input_ids):
        pooled = networks["text_encoder_2"].run({"input_ids": written})
    return _Encoded(
        encoder_hidden_states=np.concatenate(
            [weighted.hidden_states for weighted in encoded.values()], axis=-1
        ),
        text_embeds=pooled["text_embeds"],
        input_ids={name: weighted.input_ids for name, weighted in encoded.items()},
        num_truncated={name: weighted.num_truncated for name, weighted in encoded.items()},
    )


def _check_counts(prompts: Prompts) -> int:
    count = len(prompts.prompt)
    if count == 0:
        raise UsageError("prompt: got none, want at least one.")
    others = {
        "prompt_2": prompts.prompt_2,
        "negative_prompt": prompts.negative_prompt,
        "negative_prompt_2": prompts.negative_prompt_2,
    }
    for name, texts in others.items():
        if texts is not None and len(texts) != count:
            raise UsageError(f"{name}: got {len(texts)}, want {count}: one for each prompt.")
    return count
