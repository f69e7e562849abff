"""A whole SDXL checkpoint of a few megabytes, with SDXL's topology and random weights.

Only sizes differ from stabilityai/stable-diffusion-xl-base-1.0: layers are fewer and narrower, the
vocabulary is shorter, pictures are 128 x 128. The kinds of layers, activations, pooling, padding,
conditioning and the schedule are the published ones, quirks included. The pictures show nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from triptych.errors import MissingDependencyError
from triptych.models.preview_decoder import PREVIEW_DECODER_FOLDER
from triptych.models.published import SCHEDULER
from triptych.testing._new_folder import new_folder
from triptych.testing._noise import OUTPUT_GAINS, draw_parameter
from triptych.testing._tokenizers import END_TOKEN, PROMPT_WORDS, write_vocabulary

if TYPE_CHECKING:
    import diffusers
    import torch
    import transformers

NUM_TOKENS = 77
PROJECTION_DIM = 64
TIME_ID_DIM = 8

_TEXT_ENCODERS: Mapping[str, object] = {
    "max_position_embeddings": NUM_TOKENS,
    # SDXL publishes these three ids although none is its tokenizer's. End id 2 makes transformers
    # pool at the highest id of a sequence instead of at the end id (modeling_clip.py).
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

TEXT_ENCODER: Mapping[str, object] = {
    **_TEXT_ENCODERS,
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "projection_dim": 32,
}

TEXT_ENCODER_2: Mapping[str, object] = {
    **_TEXT_ENCODERS,
    "hidden_act": "gelu",
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
    "projection_dim": PROJECTION_DIM,
}

UNET: Mapping[str, object] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16, 32),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 1, 2),
    # The number of heads at each level, whatever its name says: 5, 10 and 20 in SDXL.
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 32 + 48,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_ID_DIM,
    "projection_class_embeddings_input_dim": PROJECTION_DIM + 6 * TIME_ID_DIM,
    "norm_num_groups": 4,
}

VAE: Mapping[str, object] = {
    "sample_size": 128,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 32, 32),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

PREVIEW_DECODER: Mapping[str, object] = {
    "latent_channels": 4,
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (2, 1, 1, 1),
}

TinyKind: TypeAlias = Literal["base", "refiner", "inpaint"]
"""base: SDXL base. refiner: text_encoder_2 alone, and an aesthetic score for the target size, as in
stable-diffusion-xl-refiner-1.0. inpaint: base with a U-Net of 9 channels, as in
stable-diffusion-xl-1.0-inpainting-0.1."""

UNET_CHANGES: Mapping[TinyKind, Mapping[str, object]] = {
    "base": {},
    "refiner": {
        "cross_attention_dim": 48,
        "projection_class_embeddings_input_dim": PROJECTION_DIM + 5 * TIME_ID_DIM,
    },
    "inpaint": {"in_channels": 9},
}

PAD_TOKENS: Mapping[str, str] = {"tokenizer": END_TOKEN, "tokenizer_2": "!"}


def tiny_checkpoint(
    folder: Path, *, seed: int = 0, kind: TinyKind = "base", preview_decoder: bool = False
) -> Path:
    """Write a small SDXL checkpoint with random weights, in the layout of diffusers.

    It is a real `StableDiffusionXLPipeline`: four fp32 networks in safetensors, two CLIP
    tokenizers, and the scheduler settings of SDXL base 1.0; 5 MB in all. Or the image-to-image
    pipeline of a refiner, or an inpainting pipeline. Nothing is downloaded, and torch's random
    state is left as it was. The folder appears whole or not at all.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     folder = tiny_checkpoint(Path(parent) / "tiny")
        ...     (folder / "model_index.json").is_file()
        True

    Args:
        folder: where to write; must be absent or empty. Its parents are made.
        seed: decides every weight, at least 0: one seed gives the same bytes each time.
        kind: which model: see `TinyKind`.
        preview_decoder: add a tiny AutoencoderTiny in preview_decoder/, which diffusers' pipeline
            passes over. Nothing else changes.

    Returns:
        `folder`.

    Raises:
        UsageError: `folder` is a file, or holds something.
        MissingDependencyError: torch, transformers or diffusers is not installed.
    """
    with new_folder(folder) as scratch:
        vocabulary, checkpoint = scratch / "vocabulary", scratch / "checkpoint"
        vocabulary.mkdir()
        pipeline = _make_pipeline(vocabulary, seed=seed, kind=kind)
        pipeline.save_pretrained(checkpoint, safe_serialization=True)
        if preview_decoder:
            preview = _make_preview_decoder(seed=seed)
            preview.save_pretrained(checkpoint / PREVIEW_DECODER_FOLDER, safe_serialization=True)
    return folder


def _make_pipeline(vocabulary: Path, *, seed: int, kind: TinyKind) -> "diffusers.DiffusionPipeline":
    """Build the pipeline in memory; `vocabulary` is an empty folder for its tokenizers' files."""
    try:
        # diffusers last: without the others it hands out stand-ins that fail only when called.
        import torch
        import transformers
        from diffusers import (
            AutoencoderKL,
            EulerDiscreteScheduler,
            StableDiffusionXLImg2ImgPipeline,
            StableDiffusionXLInpaintPipeline,
            StableDiffusionXLPipeline,
            UNet2DConditionModel,
        )
    except ImportError as error:
        package = (error.name or "diffusers").partition(".")[0]
        raise MissingDependencyError(package=package, extra="export") from error

    tokenizers = make_tokenizers(vocabulary)
    vocab_size = len(tokenizers["tokenizer"])
    # Constructors draw first weights from torch's global CPU generator; no other device is touched.
    with torch.random.fork_rng(devices=[]):
        networks = {
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(vocab_size=vocab_size, **TEXT_ENCODER)
            ),
            "text_encoder_2": transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(vocab_size=vocab_size, **TEXT_ENCODER_2)
            ),
            "unet": UNet2DConditionModel(**{**UNET, **UNET_CHANGES[kind]}),
            "vae": AutoencoderKL(**VAE),
        }
    generator = np.random.default_rng(seed)
    for name, network in networks.items():
        _fill_with_noise(network, generator, output_gain=OUTPUT_GAINS.get(name, 1.0))
    parts = {**networks, **tokenizers, "scheduler": EulerDiscreteScheduler(**SCHEDULER)}
    if kind == "refiner":
        return StableDiffusionXLImg2ImgPipeline(
            **{**parts, "text_encoder": None, "tokenizer": None},
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
    whole = StableDiffusionXLPipeline if kind == "base" else StableDiffusionXLInpaintPipeline
    return whole(**parts, force_zeros_for_empty_prompt=True, add_watermarker=False)


def _make_preview_decoder(*, seed: int) -> "diffusers.AutoencoderTiny":
    """Build the preview decoder in memory, of weights of its own."""
    import torch
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng(devices=[]):
        network = AutoencoderTiny(**PREVIEW_DECODER)
    _fill_with_noise(network, np.random.default_rng([seed, 1]), output_gain=1.0)
    with torch.no_grad():  # to the middle of 0 to 1, which the decoder stretches to -1 to 1
        network.decoder.layers[-1].bias += 0.5
    return network


def make_tokenizers(
    vocabulary: Path, *, vocab_size: int | None = None, text: str = PROMPT_WORDS
) -> "dict[str, transformers.CLIPTokenizer]":
    """Both tokenizers of SDXL on one small vocabulary, whose files go into an empty folder.

    Args:
        vocabulary: the folder.
        vocab_size: how many ids they have; None takes as many as there are tokens.
        text: lower-case words that the vocabulary is learned from.
    """
    import transformers

    write_vocabulary(vocabulary, vocab_size=vocab_size, text=text)
    return {
        name: transformers.CLIPTokenizer(
            vocab_file=str(vocabulary / "vocab.json"),
            merges_file=str(vocabulary / "merges.txt"),
            pad_token=pad_token,
            model_max_length=NUM_TOKENS,
        )
        for name, pad_token in PAD_TOKENS.items()
    }


def _fill_with_noise(
    network: "torch.nn.Module", generator: np.random.Generator, *, output_gain: float
) -> None:
    """Redraw every parameter: see `draw_parameter`."""
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            shape = tuple(parameter.shape)
            noise = draw_parameter(name, shape, generator, output_gain=output_gain)
            parameter.copy_(torch.from_numpy(noise))
