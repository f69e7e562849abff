"""Prompts that were encoded before, so that the text encoders need not run."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.errors import UsageError
from triptych.models.component import ComponentSpec
from triptych.models.sdxl import SdxlConfig, component_spec
from triptych.sampling.prompt_encoding import EncodedPrompts
from triptych.tensors import TensorSpec, check_tensors
from triptych.types import Array


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEmbeddings:
    """What the text encoders gave for some prompts, by diffusers' names; float32.

    Of any size: `encoded_from_embeddings` knows the model's.

    Attributes:
        prompt_embeds: token embeddings of both encoders joined, conditional side;
            [prompts, 77, 2048] in SDXL base.
        pooled_prompt_embeds: pooled embeddings of text_encoder_2, conditional side;
            [prompts, 1280] in SDXL base.
        negative_prompt_embeds: unconditional side; None is no negative prompt.
        negative_pooled_prompt_embeds: unconditional side, together with the other.
    """

    prompt_embeds: Array
    pooled_prompt_embeds: Array
    negative_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None

    @property
    def count(self) -> int:
        """Prompts, before `num_images_per_prompt`."""
        return len(self.prompt_embeds)

    def tensors(self) -> dict[str, Array]:
        """Those that are there, by name."""
        tensors = {
            "prompt_embeds": self.prompt_embeds,
            "pooled_prompt_embeds": self.pooled_prompt_embeds,
            "negative_prompt_embeds": self.negative_prompt_embeds,
            "negative_pooled_prompt_embeds": self.negative_pooled_prompt_embeds,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def embeddings_from_encoded(encoded: EncodedPrompts) -> PromptEmbeddings:
    """Both sides of some prompts, to be kept."""
    return PromptEmbeddings(
        prompt_embeds=encoded.encoder_hidden_states,
        pooled_prompt_embeds=encoded.text_embeds,
        negative_prompt_embeds=encoded.negative_encoder_hidden_states,
        negative_pooled_prompt_embeds=encoded.negative_text_embeds,
    )


def encoded_from_embeddings(
    embeddings: PromptEmbeddings, *, config: SdxlConfig, guided: bool
) -> EncodedPrompts:
    """Check embeddings against a model's sizes and take them for what its encoders would give.

    Without a negative side it is zeros where guidance does not need it, or where the model's
    `force_zeros_for_empty_prompt` says so.

    Raises:
        TensorMismatchError: a size is not the model's, or the sides differ in length.
        UsageError: no negative side, and this model wants "" encoded; or half of one.
    """
    tensors = embeddings.tensors()
    if len(tensors) % 2:
        raise UsageError(
            f"prompt embeddings: got {', '.join(tensors)}, want negative_prompt_embeds and "
            "negative_pooled_prompt_embeds together."
        )
    unet = component_spec("unet", config)
    specs = [spec for spec in _specs(unet) if spec.name in tensors]
    check_tensors(tensors, specs, component="prompt embeddings")
    if guided and len(tensors) == 2 and not config.force_zeros_for_empty_prompt:
        raise UsageError(
            "prompt embeddings: got no negative side, want negative_prompt_embeds and "
            "negative_pooled_prompt_embeds. This model takes an empty prompt's, not zeros."
        )
    states, pooled = embeddings.negative_prompt_embeds, embeddings.negative_pooled_prompt_embeds
    return EncodedPrompts(
        encoder_hidden_states=embeddings.prompt_embeds,
        text_embeds=embeddings.pooled_prompt_embeds,
        negative_encoder_hidden_states=(
            np.zeros_like(embeddings.prompt_embeds) if states is None else states
        ),
        negative_text_embeds=(
            np.zeros_like(embeddings.pooled_prompt_embeds) if pooled is None else pooled
        ),
        input_ids={},
        num_truncated={},
    )


def _specs(unet: ComponentSpec) -> list[TensorSpec]:
    """The U-Net's two inputs, under diffusers' names of either side."""
    by_name = {spec.name: spec for spec in unet.inputs}
    sources = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "text_embeds"}
    return [
        TensorSpec(name=side + name, dtype="float32", shape=by_name[source].shape)
        for side in ("", "negative_")
        for name, source in sources.items()
    ]
