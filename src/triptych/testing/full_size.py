"""SDXL base at its published size, with random float16 weights: 6.9 GB that show nothing.

For measuring, on a machine without the real one, what exporting and running it costs. Weights are
drawn and written one at a time, so that making it takes no memory to speak of.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np

from triptych.dependencies import import_optional
from triptych.models import published
from triptych.models.published import NetworkConfig
from triptych.testing._new_folder import new_folder
from triptych.testing._noise import OUTPUT_GAINS, draw_parameter
from triptych.testing.tiny import make_tokenizers

if TYPE_CHECKING:
    import torch

_WEIGHTS: Mapping[str, str] = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSizes:
    """The sizes of a base model's four networks, as their config.json says them."""

    text_encoder: NetworkConfig
    text_encoder_2: NetworkConfig
    unet: NetworkConfig
    vae: NetworkConfig


PUBLISHED_SIZES: Final = NetworkSizes(
    text_encoder=published.TEXT_ENCODER,
    text_encoder_2=published.TEXT_ENCODER_2,
    unet=published.UNET,
    vae=published.VAE,
)


def full_size_checkpoint(
    folder: Path, *, seed: int = 0, sizes: NetworkSizes = PUBLISHED_SIZES
) -> Path:
    """Write SDXL base with random float16 weights, in the layout of diffusers.

    The tokenizers know few words, but have as many ids as CLIP's. The folder appears whole or not
    at all.

    Args:
        folder: where to write; must be absent or empty. Its parents are made.
        seed: decides every weight, at least 0: one seed gives the same bytes each time.
        sizes: of the networks.

    Returns:
        `folder`.

    Raises:
        UsageError: `folder` is a file, or holds something.
        MissingDependencyError: torch, transformers or diffusers is not installed.
    """
    import_optional("torch", "transformers", "diffusers", extra="export")
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    with new_folder(folder) as scratch:
        vocabulary, checkpoint = scratch / "vocabulary", scratch / "checkpoint"
        vocabulary.mkdir()
        networks = _networks_without_weights(sizes)
        tokenizers = make_tokenizers(vocabulary, vocab_size=_vocab_size(sizes))
        scheduler = EulerDiscreteScheduler(**published.SCHEDULER)
        pipeline = StableDiffusionXLPipeline(
            **networks,
            **tokenizers,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        pipeline.save_config(checkpoint)
        scheduler.save_pretrained(checkpoint / "scheduler")
        for name, tokenizer in tokenizers.items():
            tokenizer.save_pretrained(checkpoint / name)
        for index, (name, network) in enumerate(networks.items()):
            _write_config(network, checkpoint / name)
            path = checkpoint / name / _WEIGHTS[name]
            _write_weights(network, path, name=name, key=[seed, index])
    return folder


def _vocab_size(sizes: NetworkSizes) -> int | None:
    size = sizes.text_encoder.get("vocab_size")
    return size if isinstance(size, int) else None


def _networks_without_weights(sizes: NetworkSizes) -> "dict[str, torch.nn.Module]":
    """The four networks on the meta device, where a parameter is a shape and no memory."""
    import torch
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        return {
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**sizes.text_encoder)
            ),
            "text_encoder_2": transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**sizes.text_encoder_2)
            ),
            "unet": UNet2DConditionModel(**sizes.unet),
            "vae": AutoencoderKL(**sizes.vae),
        }


def _write_config(network: "torch.nn.Module", folder: Path) -> None:
    import diffusers
    import transformers

    if isinstance(network, transformers.PreTrainedModel):
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
    elif isinstance(network, diffusers.ModelMixin):
        network.save_config(folder)


def _write_weights(network: "torch.nn.Module", path: Path, *, name: str, key: list[int]) -> None:
    """Stream a network's random weights into a safetensors file.

    The safetensors library takes all tensors at once.

    Source:
        https://github.com/huggingface/safetensors, "Format": eight bytes of the header's length,
        the header in JSON, padded with spaces to eight bytes, and the tensors without a gap.
    """
    shapes = {label: tuple(value.shape) for label, value in network.named_parameters()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for label, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[label] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for index, (label, shape) in enumerate(shapes.items()):
            generator = np.random.default_rng([*key, index])
            values = draw_parameter(
                label, shape, generator, output_gain=OUTPUT_GAINS.get(name, 1.0)
            )
            stream.write(values.astype(np.float16).tobytes())
