"""From prompts and sizes to the tensors that condition the U-Net.

Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, encode_prompt and _get_add_time_ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, SupportsFloat, final, runtime_checkable

import numpy as np

from triptych.bundle.clip_skip import SKIPPED_HIDDEN_STATES
from triptych.errors import UsageError
from triptych.models.sdxl import SdxlConfig
from triptych.models.tokenizer import ClipTokenizer
from triptych.sampling.prompt_weighting import parse_prompt
from triptych.sampling.weighted_encoding import WeightedStates, encode_weighted
from triptych.types import (
    Array,
    ComponentName,
    HiddenStates,
    TensorMap,
    TextEmbeds,
    TextIds,
    TimeIds,
)


@runtime_checkable
class Network(Protocol):
    """Anything that runs one component in triptych's vocabulary: an open, checked session."""

    def run(self, feed: TensorMap) -> dict[str, Array]:
        """Compute the component's outputs from its inputs."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is asked for, one entry a picture before `num_images_per_prompt`.

    Attributes:
        prompt: for text_encoder.
        prompt_2: for text_encoder_2; None takes `prompt`.
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
class MicroConditioning:
    """SDXL's size conditioning, in pixels, height before width.

    Attributes:
        original_size: of the imagined training picture; None takes the picture's.
        crop: top and left of its crop.
        target_size: of the picture asked for; None takes the picture's.
        negative_original_size: the same for the unconditional side, together with
            `negative_target_size`; otherwise it takes the positive one.
        negative_crop: top and left for the unconditional side.
        negative_target_size: see `negative_original_size`.
        aesthetic_score: for refiners, which take it instead of the target size.
        negative_aesthetic_score: the same for the unconditional side.
    """

    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crop: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What the U-Net is told besides the latents and the time.

    With guidance the batch is twice the pictures', the unconditional half first.

    Attributes:
        encoder_hidden_states: token embeddings.
        text_embeds: pooled embedding of text_encoder_2.
        time_ids: micro-conditioning.
    """

    encoder_hidden_states: HiddenStates
    text_embeds: TextEmbeds
    time_ids: TimeIds


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
    texts: dict[ComponentName, tuple[str, ...]] = {
        "text_encoder": prompts.prompt,
        "text_encoder_2": prompts.prompt_2 or prompts.prompt,
    }
    states = SKIPPED_HIDDEN_STATES if prompts.clip_skip else "hidden_states"
    positive = encode(texts, networks=networks, tokenizers=tokenizers, states=states)
    if prompts.negative_prompt is None and config.force_zeros_for_empty_prompt:
        negative_states = np.zeros_like(positive.encoder_hidden_states)
        negative_embeds = np.zeros_like(positive.text_embeds)
    else:
        first = prompts.negative_prompt or ("",) * count
        second = prompts.negative_prompt_2 or first
        negative = encode(
            {"text_encoder": first, "text_encoder_2": second},
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


def make_conditioning(
    encoded: EncodedPrompts,
    sizes: MicroConditioning,
    *,
    config: SdxlConfig,
    picture_size: tuple[int, int],
    num_images_per_prompt: int = 1,
    guided: bool,
    from_image: bool = False,
) -> Conditioning:
    """Join the sides and repeat for several pictures a prompt.

    The time_ids of each half are those of its side. (diffusers repeats the joined pair, which
    for more than one picture gives each side a mixture when negative sizes differ.)

    Args:
        encoded: the prompts.
        sizes: micro-conditioning.
        config: the model's numbers.
        picture_size: height and width in pixels, for sizes left open.
        num_images_per_prompt: pictures for each prompt, next to each other.
        guided: whether the unconditional half is needed.
        from_image: the run starts from a picture, where diffusers fills in negative sizes
            otherwise.
    """
    repeats = num_images_per_prompt
    positive_ids, negative_ids = _both_time_ids(sizes, picture_size, config, from_image=from_image)
    positive = Conditioning(
        encoder_hidden_states=np.repeat(encoded.encoder_hidden_states, repeats, axis=0),
        text_embeds=np.repeat(encoded.text_embeds, repeats, axis=0),
        time_ids=np.tile(positive_ids, (len(encoded.text_embeds) * repeats, 1)),
    )
    if not guided:
        return positive
    negative = Conditioning(
        encoder_hidden_states=np.repeat(encoded.negative_encoder_hidden_states, repeats, axis=0),
        text_embeds=np.repeat(encoded.negative_text_embeds, repeats, axis=0),
        time_ids=np.tile(negative_ids, (len(positive.time_ids), 1)),
    )
    return Conditioning(
        encoder_hidden_states=np.concatenate(
            [negative.encoder_hidden_states, positive.encoder_hidden_states]
        ),
        text_embeds=np.concatenate([negative.text_embeds, positive.text_embeds]),
        time_ids=np.concatenate([negative.time_ids, positive.time_ids]),
    )


def _both_time_ids(
    sizes: MicroConditioning,
    picture_size: tuple[int, int],
    config: SdxlConfig,
    *,
    from_image: bool,
) -> tuple[TimeIds, TimeIds]:
    """The conditional and the unconditional side's, one row each.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, __call__ 7, where negative sizes count
    only as a pair; pipeline_stable_diffusion_xl_img2img.py, _get_add_time_ids, where each counts
    for itself, and the negative crop in a refiner alone.
    """
    original, target = sizes.original_size or picture_size, sizes.target_size or picture_size
    negative_original = sizes.negative_original_size or original
    negative_target = sizes.negative_target_size or target
    if config.num_time_ids == 5:
        return (
            _row(*original, *sizes.crop, sizes.aesthetic_score),
            _row(*negative_original, *sizes.negative_crop, sizes.negative_aesthetic_score),
        )
    positive = _row(*original, *sizes.crop, *target)
    if from_image:
        return positive, _row(*negative_original, *sizes.crop, *negative_target)
    if sizes.negative_original_size is None or sizes.negative_target_size is None:
        return positive, positive
    return positive, _row(*negative_original, *sizes.negative_crop, *negative_target)


def _row(*ids: SupportsFloat) -> TimeIds:
    return np.array([[float(number) for number in ids]], np.float32)


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
