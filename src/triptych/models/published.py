"""The networks that Stability AI published as SDXL 1.0, as numbers for diffusers' classes.

What is not said here is those classes' default. Single files carry no configs, and a full-size
checkpoint of random weights is made from these.

Source:
    config.json of each network in stabilityai/stable-diffusion-xl-base-1.0 and
    stabilityai/stable-diffusion-xl-refiner-1.0, and their scheduler_config.json.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

NetworkConfig: TypeAlias = Mapping[str, object]

_TEXT_ENCODERS: Final[NetworkConfig] = {
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    # None of the three is its tokenizer's. End id 2 makes transformers pool at the highest id of a
    # sequence instead of at the end id (modeling_clip.py).
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}

TEXT_ENCODER: Final[NetworkConfig] = {
    **_TEXT_ENCODERS,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
"""CLIP ViT-L/14's, with every size of OpenAI's."""

TEXT_ENCODER_2: Final[NetworkConfig] = {
    **_TEXT_ENCODERS,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
"""OpenCLIP ViT-bigG/14's."""

UNET: Final[NetworkConfig] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    # The number of heads at each level, whatever its name says.
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    "norm_num_groups": 32,
}

REFINER_UNET: Final[NetworkConfig] = {
    **UNET,
    "down_block_types": (
        "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (384, 768, 1536, 1536),
    "transformer_layers_per_block": (4, 4, 4, 4),
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 1280 + 5 * 256,
}  # fmt: skip

VAE: Final[NetworkConfig] = {
    "sample_size": 1024,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}

SCHEDULER: Final[NetworkConfig] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
"""For EulerDiscreteScheduler."""
