"""The demo model's networks: SDXL's classes and kinds of layers, in sizes that two cores can train.

Weights are a few megabytes; pictures are 128 x 128, latents 16 x 16.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import transformers
from averages import start_from_averages
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file

from triptych.models.published import SCHEDULER
from triptych.scenes.scene import caption, iter_scenes
from triptych.testing.tiny import NUM_TOKENS, make_tokenizers

TEXT_WIDTH, TEXT_WIDTH_2, PROJECTION_DIM, TIME_ID_DIM = 64, 96, 96, 16

_TEXT_ENCODERS: Mapping[str, object] = {
    "max_position_embeddings": NUM_TOKENS,
    # As SDXL publishes them: none is its tokenizer's, and end id 2 makes transformers pool at the
    # highest id of a sequence (modeling_clip.py).
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "num_hidden_layers": 3,
}

TEXT_ENCODER: Mapping[str, object] = {
    **_TEXT_ENCODERS,
    "hidden_act": "quick_gelu",
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "num_attention_heads": 4,
    "projection_dim": TEXT_WIDTH,
}

TEXT_ENCODER_2: Mapping[str, object] = {
    **_TEXT_ENCODERS,
    "hidden_act": "gelu",
    "hidden_size": TEXT_WIDTH_2,
    "intermediate_size": 2 * TEXT_WIDTH_2,
    "num_attention_heads": 4,
    "projection_dim": PROJECTION_DIM,
}

UNET: Mapping[str, object] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (1, 2, 3),
    "cross_attention_dim": TEXT_WIDTH + TEXT_WIDTH_2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_ID_DIM,
    "projection_class_embeddings_input_dim": PROJECTION_DIM + 6 * TIME_ID_DIM,
    "norm_num_groups": 8,
}

VAE: Mapping[str, object] = {
    "sample_size": 128,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 1,  # as `averages` wants it
    "scaling_factor": 1.0,  # measured from latents when it is trained
    "force_upcast": True,
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """What is trained, and the tokenizers."""

    text_encoder: transformers.CLIPTextModel
    text_encoder_2: transformers.CLIPTextModelWithProjection
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tokenizers: Mapping[str, transformers.CLIPTokenizer]

    def denoising(self) -> torch.nn.ModuleDict:
        """The three that are trained together, after the autoencoder."""
        return torch.nn.ModuleDict(
            {
                "text_encoder": self.text_encoder,
                "text_encoder_2": self.text_encoder_2,
                "unet": self.unet,
            }
        )


def make_networks(*, seed: int, vocabulary: Path) -> Networks:
    """Untrained networks; `vocabulary` is a folder for the tokenizers' files."""
    vocabulary.mkdir(parents=True, exist_ok=True)
    tokenizers = make_tokenizers(vocabulary, text="\n".join(_texts()))
    vocab_size = len(tokenizers["tokenizer"])
    torch.manual_seed(seed)
    vae = AutoencoderKL(**VAE)
    start_from_averages(vae)
    return Networks(
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(vocab_size=vocab_size, **TEXT_ENCODER)
        ),
        text_encoder_2=transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(vocab_size=vocab_size, **TEXT_ENCODER_2)
        ),
        unet=UNet2DConditionModel(**UNET),
        vae=vae,
        tokenizers=tokenizers,
    )


def load_networks(networks: Networks, folder: Path) -> None:
    """Take the weights of a model that was made by this, and its scale of latents."""
    for name, file in (
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        getattr(networks, name).load_state_dict(load_file(folder / name / f"{file}.safetensors"))
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    networks.vae.register_to_config(scaling_factor=config["scaling_factor"])


def make_pipeline(networks: Networks) -> StableDiffusionXLPipeline:
    """The networks as a pipeline of diffusers'."""
    return StableDiffusionXLPipeline(
        text_encoder=networks.text_encoder,
        text_encoder_2=networks.text_encoder_2,
        unet=networks.unet,
        vae=networks.vae,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
        **networks.tokenizers,
    )


def _texts() -> Iterator[str]:
    """Every caption, and the word that stands for a shape that is not named."""
    yield from map(caption, iter_scenes())
    yield "a shape"
