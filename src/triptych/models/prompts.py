"""Prompts to try text encoders on: the lengths at which masks and pooling go wrong."""

from pathlib import Path

import numpy as np

from triptych.models.tokenizer import load_tokenizer
from triptych.types import ComponentName, InputIds

PROMPTS = (
    "",
    "a cat",
    (
        "a photograph of an astronaut riding a horse on mars, golden hour, dramatic clouds, "
        "sharp focus, wide angle, highly detailed, award winning, 35mm film, soft shadows, "
        "reflections in the visor, dust behind the hooves, distant mountains, two moons rising, "
        "trending, intricate, elegant, vivid colors, volumetric light, and a small red flag"
    ),
)
"""Empty, two words, and longer than the 75 tokens that fit."""

_TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def prompt_ids(folder: Path, component: ComponentName) -> InputIds:
    """The prompts as one text encoder sees them; an empty array for other components.

    Args:
        folder: a checkpoint or bundle with its tokenizers.
        component: which component.

    Raises:
        CheckpointError: the tokenizer's files are missing.
    """
    if component not in _TOKENIZERS:
        return np.zeros((0, 0), np.int64)
    return load_tokenizer(folder / _TOKENIZERS[component]).encode(PROMPTS).input_ids
