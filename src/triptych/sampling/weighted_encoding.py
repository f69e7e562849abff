"""Compel's arithmetic: what the weights of a prompt do to a text encoder's hidden states.

Source:
    damian0815/compel 2.4.0: src/compel/embeddings_provider.py,
    get_embeddings_for_weighted_prompt_fragments, build_weighted_embedding_tensor and
    apply_embedding_weights, with truncate_long_prompts=True and DownweightMode.REMOVE.
    Compel's default is DownweightMode.MASK. It hides a fragment by an attention mask, and a text
    encoder that was exported for SDXL takes no mask: its only input is input_ids.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, final, runtime_checkable

import numpy as np

from triptych.models.tokenizer import ClipTokenizer, Tokens
from triptych.sampling.prompt_weighting import Fragment, WeightedPrompt
from triptych.types import Array, HiddenStates, InputIds, TensorMap, TextIds

_Item = TypeVar("_Item")

_SMALLEST_WEIGHT = 1e-5
"""Stands for smaller weights, as in Compel: the tangent at 0 would be infinite."""


@runtime_checkable
class TextEncoder(Protocol):
    """What gives hidden states for token ids: an open, checked session."""

    def run(self, feed: TensorMap) -> dict[str, Array]:
        """Compute hidden states from `input_ids`."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedStates:
    """Prompts through one text encoder.

    Attributes:
        hidden_states: one row a prompt, weighted and blended.
        input_ids: one row a text; a blend has several.
        num_truncated: content tokens cut from each prompt; of a blend, from its longest text.
        outputs: everything the encoder gave for `input_ids`, unweighted.
    """

    hidden_states: HiddenStates
    input_ids: TextIds
    num_truncated: tuple[int, ...]
    outputs: dict[str, Array]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """The tokens of one fragment."""

    content: Sequence[int]
    weight: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """One text as the encoder gets it, and each of its tokens' weight, `[tokens, 1]`."""

    tokens: Tokens
    weights: Array


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A text, and the same text without each of its fragments that weigh less than 1.

    Attributes:
        whole: the text.
        lacking: the text without one fragment.
        pulls: how strongly each of `lacking` pulls; the whole text pulls with 1.
    """

    whole: _Text
    lacking: tuple[_Text, ...]
    pulls: tuple[float, ...]


def encode_weighted(
    prompts: Sequence[WeightedPrompt],
    *,
    network: TextEncoder,
    tokenizer: ClipTokenizer,
    states: str = "hidden_states",
) -> WeightedStates:
    """Hidden states of some prompts, weighted and blended as Compel does it.

    A token of weight w gets empty + w·(z - empty), where z is its own hidden state and empty that
    of the empty prompt at its place; weight 1 leaves z untouched. For each fragment of a weight
    w < 1 the text is encoded once more without it, and that pulls with tan((1 - w)·π/2) against
    the whole text's 1: at w = 0.5 both pull alike. A blend is the sum of its texts' states by
    their shares.

    The encoder runs once for the texts themselves, and once more where there are weights.

    Args:
        prompts: read by `parse_prompt`.
        network: the text encoder, open.
        tokenizer: its own.
        states: which of its outputs to weigh.
    """
    plans = [_plan(text, tokenizer) for prompt in prompts for text in prompt.texts]
    input_ids = np.concatenate([plan.whole.tokens.input_ids for plan in plans])
    outputs = network.run({"input_ids": input_ids})
    by_text = list(outputs[states])
    if any((plan.whole.weights != 1).any() for plan in plans):
        extra = network.run({"input_ids": _extra_ids(plans, tokenizer)})[states]
        by_text = _weighted_texts(plans, by_text, list(extra))
    num_truncated = [plan.whole.tokens.num_truncated[0] for plan in plans]
    return WeightedStates(
        hidden_states=np.stack(
            [
                _mixed(of_prompt, prompt.shares)
                for prompt, of_prompt in zip(prompts, _by_prompt(by_text, prompts), strict=True)
            ]
        ),
        input_ids=input_ids,
        num_truncated=tuple(max(counts) for counts in _by_prompt(num_truncated, prompts)),
        outputs=outputs,
    )


def _by_prompt(by_text: Iterable[_Item], prompts: Iterable[WeightedPrompt]) -> list[list[_Item]]:
    """One entry a text becomes one list a prompt."""
    remaining = iter(by_text)
    return [list(itertools.islice(remaining, len(prompt.texts))) for prompt in prompts]


def _plan(fragments: Sequence[Fragment], tokenizer: ClipTokenizer) -> _Plan:
    pieces = [
        _Piece(content=tokenizer.encode_content(fragment.text), weight=fragment.weight)
        for fragment in fragments
    ]
    starts = itertools.accumulate((len(piece.content) for piece in pieces), initial=0)
    room = tokenizer.model_max_length - 2
    # A piece behind the cut has no token to pull.
    lighter = [
        index
        for index, (piece, start) in enumerate(zip(pieces, starts, strict=False))
        if piece.weight < 1 and piece.content and start < room
    ]
    return _Plan(
        whole=_joined(pieces, tokenizer),
        lacking=tuple(
            _joined([*pieces[:index], *pieces[index + 1 :]], tokenizer) for index in lighter
        ),
        pulls=tuple(
            math.tan((1 - max(pieces[index].weight, _SMALLEST_WEIGHT)) * math.pi / 2)
            for index in lighter
        ),
    )


def _joined(pieces: Sequence[_Piece], tokenizer: ClipTokenizer) -> _Text:
    content = [token for piece in pieces for token in piece.content]
    kept = [piece.weight for piece in pieces for _ in piece.content][
        : tokenizer.model_max_length - 2
    ]
    weights = np.ones((tokenizer.model_max_length, 1), np.float32)
    weights[1 : len(kept) + 1, 0] = kept
    return _Text(tokens=tokenizer.pad([content]), weights=weights)


def _extra_ids(plans: Iterable[_Plan], tokenizer: ClipTokenizer) -> InputIds:
    """The texts that lack a fragment, and last the empty one."""
    lacking = [text.tokens.input_ids for plan in plans for text in plan.lacking]
    return np.concatenate([*lacking, tokenizer.encode([""]).input_ids])


def _weighted_texts(
    plans: Sequence[_Plan], whole: Sequence[Array], extra: Sequence[Array]
) -> list[Array]:
    """Every text's states with its weights; `extra` are those of `_extra_ids`."""
    *without, empty = extra
    remaining = iter(without)
    return [
        _pulled(plan, [states, *itertools.islice(remaining, len(plan.lacking))], empty)
        for plan, states in zip(plans, whole, strict=True)
    ]


def _pulled(plan: _Plan, states: Sequence[Array], empty: Array) -> Array:
    """A text's weighted states, pulled towards those that lack its lighter fragments."""
    texts = [plan.whole, *plan.lacking]
    weighted = [
        # Where the weight is 1 the state itself, not what rounding leaves of it.
        np.where(text.weights == 1, found, empty + (found - empty) * text.weights)
        for found, text in zip(states, texts, strict=True)
    ]
    pulls = np.array([1.0, *plan.pulls])
    return _mixed(weighted, tuple(pulls / pulls.sum()))


def _mixed(states: Sequence[Array], shares: Sequence[float]) -> Array:
    """The sum of some states by their shares; the only one of a share of 1 is itself."""
    if len(states) == 1 and shares[0] == 1:
        return states[0]
    factors = np.array(shares, np.float32).reshape(-1, 1, 1)
    mixed: Array = (np.stack(states) * factors).sum(axis=0)
    return mixed
