"""What the U-Net is told besides the latents and the time.

Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, __call__ 7.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.models.sdxl import SdxlConfig
from triptych.sampling.micro_conditioning import MicroConditioning, both_time_ids
from triptych.sampling.prompt_encoding import EncodedPrompts
from triptych.types import HiddenStates, TextEmbeds, TimeIds


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
    positive_ids, negative_ids = both_time_ids(sizes, picture_size, config, from_image=from_image)
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
