"""The configs that a single file lacks: sizes from its weights' shapes, the rest as published.

Shapes tell channels, layers and widths. They do not tell the number of attention heads, the
activations or the noise schedule, in which all of SDXL's fine-tunes are as published; a model that
is not has its configs named.

Source:
    models/published.py; num_head_channels 64 in Stability-AI/generative-models
    configs/inference/sd_xl_base.yaml.
"""

from collections.abc import Mapping
from typing import Final

from triptych.errors import CheckpointError
from triptych.models.configs import JsonObject
from triptych.models.published import SCHEDULER, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE
from triptych.models.single_file import SingleFile
from triptych.models.stored_tensor import StoredTensor

_HEAD_CHANNELS: Final = 64
"""Of one attention head in the U-Net and both text encoders."""

_CLASSES: Final = {
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def model_index(single: SingleFile) -> dict[str, object]:
    """model_index.json, as diffusers' pipeline of that kind of model saves it."""
    is_inpainting = _num_inputs(single.networks["unet"]) == 9
    absent = {"text_encoder", "tokenizer"} if single.is_refiner else set()
    pipeline = (
        "StableDiffusionXLImg2ImgPipeline"
        if single.is_refiner
        else f"StableDiffusionXL{'Inpaint' if is_inpainting else ''}Pipeline"
    )
    return {
        "_class_name": pipeline,
        "_name_or_path": single.path.stem,
        **{name: (None, None) if name in absent else pair for name, pair in _CLASSES.items()},
        "force_zeros_for_empty_prompt": not single.is_refiner,
        **({"requires_aesthetics_score": True} if single.is_refiner else {}),
    }


def network_configs(single: SingleFile) -> dict[str, JsonObject]:
    """config.json of each network."""
    configs: dict[str, JsonObject] = {
        "text_encoder_2": _text_encoder(single.networks["text_encoder_2"], TEXT_ENCODER_2),
        "unet": _unet(single.networks["unet"]),
        "vae": _vae(single.networks["vae"]),
    }
    if not single.is_refiner:
        configs["text_encoder"] = _text_encoder(single.networks["text_encoder"], TEXT_ENCODER)
    return configs


def scheduler_config(single: SingleFile, published: JsonObject | None = None) -> dict[str, object]:
    """scheduler_config.json, with what the file's own keys say of its training.

    Args:
        single: the file.
        published: a scheduler config to start from; None takes SDXL's.
    """
    config = (
        {"_class_name": "EulerDiscreteScheduler", **SCHEDULER}
        if published is None
        else {**published}
    )
    if single.is_v_prediction:
        config["prediction_type"] = "v_prediction"
    if single.is_zero_snr:
        config["rescale_betas_zero_snr"] = True
    return config


def _text_encoder(tensors: Mapping[str, StoredTensor], published: JsonObject) -> JsonObject:
    vocab_size, hidden_size = _shape(tensors, "text_model.embeddings.token_embedding.weight")
    positions, _ = _shape(tensors, "text_model.embeddings.position_embedding.weight")
    projection = tensors.get("text_projection.weight")
    layers = {name.split(".")[3] for name in tensors if name.startswith("text_model.encoder.l")}
    is_second = projection is not None
    return {
        **published,
        "architectures": ["CLIPTextModelWithProjection" if is_second else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "max_position_embeddings": positions,
        "num_hidden_layers": len(layers),
        "num_attention_heads": _num_heads(hidden_size, where="text encoder"),
        "intermediate_size": _shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "projection_dim": projection.shape[0] if projection is not None else hidden_size,
    }


def _unet(tensors: Mapping[str, StoredTensor]) -> JsonObject:
    levels = range(len(_numbers(tensors, "down_blocks.", 1)))
    channels = [_shape(tensors, f"down_blocks.{n}.resnets.0.conv1.weight")[0] for n in levels]
    depths = [_depth(tensors, f"down_blocks.{n}.attentions.0.") for n in levels]
    # diffusers takes the middle block's depth from the last level, also where that has none.
    depths[-1] = depths[-1] or _depth(tensors, "mid_block.attentions.0.")
    has_attention = [
        any(name.startswith(f"down_blocks.{n}.attentions.") for name in tensors) for n in levels
    ]
    cross_attention = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    down = tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_attention)
    return {
        "_class_name": "UNet2DConditionModel",
        **UNET,
        "in_channels": _num_inputs(tensors),
        "out_channels": _shape(tensors, "conv_out.weight")[0],
        "down_block_types": down,
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        "block_out_channels": channels,
        "layers_per_block": len(_numbers(tensors, "down_blocks.0.resnets.", 3)),
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "attention_head_dim": [_num_heads(count, where="unet") for count in channels],
        "cross_attention_dim": _shape(tensors, cross_attention)[1],
        "use_linear_projection": not any(
            name.endswith(".proj_in.weight") and len(tensor.shape) == 4
            for name, tensor in tensors.items()
        ),
        "projection_class_embeddings_input_dim": _shape(tensors, "add_embedding.linear_1.weight")[
            1
        ],
    }


def _vae(tensors: Mapping[str, StoredTensor]) -> JsonObject:
    levels = range(len(_numbers(tensors, "encoder.down_blocks.", 2)))
    return {
        "_class_name": "AutoencoderKL",
        **VAE,
        "block_out_channels": [
            _shape(tensors, f"encoder.down_blocks.{n}.resnets.0.conv1.weight")[0] for n in levels
        ],
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "layers_per_block": len(_numbers(tensors, "encoder.down_blocks.0.resnets.", 4)),
        "latent_channels": _shape(tensors, "decoder.conv_in.weight")[1],
    }


def _num_inputs(unet: Mapping[str, StoredTensor]) -> int:
    return _shape(unet, "conv_in.weight")[1]


def _shape(tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        files = sorted({str(tensor.file) for tensor in tensors.values()})
        raise CheckpointError(
            f"{', '.join(files)}: got no weight that diffusers calls {name}, want a whole model."
        )
    return tensors[name].shape


def _num_heads(channels: int, *, where: str) -> int:
    if channels % _HEAD_CHANNELS:
        raise CheckpointError(
            f"{where}: got {channels} channels, want a multiple of SDXL's {_HEAD_CHANNELS} for a "
            "head. This is not as SDXL was published: name a folder that has its configs, --config."
        )
    return channels // _HEAD_CHANNELS


def _numbers(tensors: Mapping[str, StoredTensor], prefix: str, place: int) -> set[str]:
    return {name.split(".")[place] for name in tensors if name.startswith(prefix)}


def _depth(tensors: Mapping[str, StoredTensor], prefix: str) -> int:
    place = prefix.count(".") + 1
    return len(_numbers(tensors, f"{prefix}transformer_blocks.", place))
