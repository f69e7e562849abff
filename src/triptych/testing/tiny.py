"""A whole SDXL checkpoint of a few megabytes, with SDXL's topology and random weights.

Only sizes differ from stabilityai/stable-diffusion-xl-base-1.0: layers are fewer and narrower, the
vocabulary is shorter, pictures are 128 x 128. The kinds of layers, activations, pooling, padding,
conditioning and the schedule are the published ones, quirks included. The pictures show nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from triptych.errors import MissingDependencyError, UsageError
from triptych.models.preview_decoder import PREVIEW_DECODER_FOLDER
from triptych.models.published import SCHEDULER
from triptych.testing._tokenizers import END_TOKEN, write_vocabulary

if TYPE_CHECKING:
    import diffusers
    import torch

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

OUTPUT_GAINS: Mapping[str, float] = {"unet": 2.0, "vae": 0.5}
"""Found by trying: noise_pred of standard deviation around 1, few pixels beyond -1 to 1."""

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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "a folder that is not empty" if folder.is_dir() else "a file"
        raise UsageError(
            f"{folder}: got {what}, want an absent or empty folder. "
            "Name another, or delete this one first."
        )
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        vocabulary, checkpoint = Path(scratch, "vocabulary"), Path(scratch, "checkpoint")
        vocabulary.mkdir()
        pipeline = _make_pipeline(vocabulary, seed=seed, kind=kind)
        pipeline.save_pretrained(checkpoint, safe_serialization=True)
        if preview_decoder:
            preview = _make_preview_decoder(seed=seed)
            preview.save_pretrained(checkpoint / PREVIEW_DECODER_FOLDER, safe_serialization=True)
        if target.is_dir():
            target.rmdir()  # only POSIX renames onto an empty folder
        checkpoint.rename(target)
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

    vocab_size = write_vocabulary(vocabulary)
    tokenizers = {
        name: transformers.CLIPTokenizer(
            vocab_file=str(vocabulary / "vocab.json"),
            merges_file=str(vocabulary / "merges.txt"),
            pad_token=pad_token,
            model_max_length=NUM_TOKENS,
        )
        for name, pad_token in PAD_TOKENS.items()
    }
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


def _fill_with_noise(
    network: "torch.nn.Module", generator: np.random.Generator, *, output_gain: float
) -> None:
    """Redraw every parameter so that signals keep their size and every input is felt.

    Default initialisation shrinks signals layer by layer (kaiming_uniform with a = sqrt(5)), until
    the U-Net hardly hears its conditioning. It also leaves norms at 1 and many biases at 0, so that
    an exporter could drop them unnoticed. Weights here have variance 1/fan_in, scales are around 1
    and biases around 0; `output_gain` multiplies the weights of a final convolution (conv_out).

    NumPy draws the numbers: torch's own depend on the vector width of the processor.

    Source:
        LeCun et al. 1998, Efficient BackProp, section 4.6, for the variance.
    """
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
            if parameter.ndim > 1:
                gain = output_gain if name.endswith("conv_out.weight") else 1.0
                noise *= gain * parameter[0].numel() ** -0.5
            else:
                noise *= 0.1
                noise += name.endswith("weight")
            parameter.copy_(torch.from_numpy(noise))
