"""The networks as torch modules with flat tensor arguments, for export and for reference.

Imports torch when it is itself imported, so import it inside the function that needs it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, cast, final, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import override

from triptych.errors import CheckpointError
from triptych.models.checkpoint import Checkpoint
from triptych.models.configs import read_json
from triptych.models.mapped import is_large, kept_on_disk, widen_on_use
from triptych.models.stored_tensor import StoredTensor
from triptych.models.weights import read_tensor, stream_tensors
from triptych.types import ComponentName


@runtime_checkable
class ComponentModule(Protocol):
    """A network whose forward takes and gives flat tuples of tensors.

    Attributes:
        prefix: what module parameter names carry before their name in the checkpoint.
        output_names: names of forward's results, in order.
    """

    prefix: str
    output_names: tuple[str, ...]


@final
class TextEncoderModule(nn.Module):
    """A CLIP text encoder: pooled output, last hidden state, and every hidden state."""

    prefix = "encoder."

    def __init__(self, encoder: nn.Module, *, pooled_name: str, num_hidden_layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooled_name = pooled_name
        states = tuple(f"hidden_states.{index}" for index in range(num_hidden_layers + 1))
        # diffusers takes the pooled output of text_encoder_2 as the first output, and nothing
        # but hidden states from text_encoder: the order optimum keeps.
        first = ("text_embeds", "last_hidden_state")
        plain = ("last_hidden_state", "pooler_output")
        self.output_names = (first if pooled_name == "text_embeds" else plain) + states

    @override
    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Encode token ids [batch, 77]. Every result is float32 at the border."""
        output = self.encoder(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        first, second = self.output_names[:2]
        tensors = (output[first], output[second], *output.hidden_states)
        return tuple(tensor.float() for tensor in tensors)


@final
class UnetModule(nn.Module):
    """The U-Net with SDXL's added conditioning as plain arguments."""

    prefix = "unet."
    output_names = ("noise_pred",)

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    @override
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> tuple[Tensor]:
        """Predict the noise. Every argument and the result are float32 at the border.

        timestep, text_embeds and time_ids stay float32 up to the sinusoids: rounded to half
        precision, a timestep of 951 becomes 951.0 or 952.0 and a frequency table loses 4 %.
        """
        dtype = next(self.unet.parameters()).dtype
        prediction = self.unet(
            sample.to(dtype),
            timestep,
            encoder_hidden_states.to(dtype),
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return (prediction.to(sample.dtype),)


@final
class VaeEncoderModule(nn.Module):
    """Image to the moments (mean and log-variance) of the latent posterior."""

    prefix = ""
    output_names = ("moments",)

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.encoder = vae.get_submodule("encoder")
        self.quant_conv = vae.get_submodule("quant_conv") if vae.quant_conv else None

    @override
    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Encode an image in -1 to 1, [batch, 3, 8*height, 8*width]."""
        dtype = next(self.encoder.parameters()).dtype
        moments = self.encoder(image.to(dtype))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return (moments.to(image.dtype),)


@final
class VaeDecoderModule(nn.Module):
    """Latents, divided by the scaling factor already, to an image."""

    prefix = ""
    output_names = ("image",)

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.decoder = vae.get_submodule("decoder")
        self.post_quant_conv = vae.get_submodule("post_quant_conv") if vae.post_quant_conv else None

    @override
    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Decode latents [batch, 4, height, width]."""
        dtype = next(self.decoder.parameters()).dtype
        decoded = latents.to(dtype)
        if self.post_quant_conv is not None:
            decoded = self.post_quant_conv(decoded)
        return (self.decoder(decoded).to(latents.dtype),)


@final
class PreviewDecoderModule(nn.Module):
    """Latents as the sampler keeps them, to an image: the decoder of an AutoencoderTiny.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, the end of __call__ with this class as
    the VAE: latents / scaling_factor, 1.0 in TAESD, then AutoencoderTiny.decode.
    """

    prefix = ""
    output_names = ("image",)

    def __init__(self, decoder: nn.Module, *, scaling_factor: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.scaling_factor = scaling_factor

    @override
    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Decode latents [batch, 4, height, width]."""
        dtype = next(self.decoder.parameters()).dtype
        image = self.decoder((latents / self.scaling_factor).to(dtype))
        return (image.to(latents.dtype),)


def load_module(
    checkpoint: Checkpoint,
    component: ComponentName,
    *,
    dtype: torch.dtype,
    scratch: Path | None = None,
) -> nn.Module:
    """One component with its weights; those already of `dtype` stay mapped from the file.

    Args:
        checkpoint: where the weights are.
        component: which component.
        dtype: what weights are converted to.
        scratch: convert into mapped files of this folder instead of memory.

    Raises:
        CheckpointError: the weights do not fit the config.
    """
    module = _empty_module(checkpoint, component)
    stored = _match_parameters(module, checkpoint, component)
    tensors = {
        name: tensor.to(dtype)
        if scratch is None
        else kept_on_disk(tensor, stored[name], dtype, scratch=scratch)
        for name, tensor in stream_tensors(stored)
    }
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval().requires_grad_(requires_grad=False)


def load_lean_module(
    checkpoint: Checkpoint, component: ComponentName, *, dtype: torch.dtype
) -> nn.Module:
    """One component whose weights stay mapped, and are converted layer by layer as it runs.

    The VAE is converted whole: it asks its layers for their dtype, and it is small.

    Raises:
        CheckpointError: the weights do not fit the config.
    """
    if component in ("vae_encoder", "vae_decoder", "preview_decoder"):
        return load_module(checkpoint, component, dtype=dtype)
    module = _empty_module(checkpoint, component)
    stored = _match_parameters(module, checkpoint, component)
    late = [name for name, tensor in stored.items() if not tensor.is_plain and is_large(tensor)]
    tensors = {name: _one_element(stored[name].shape, dtype=dtype) for name in late}
    tensors |= stream_tensors(stored, stored.keys() - tensors.keys())
    module.load_state_dict(tensors, strict=True, assign=True)
    module.eval().requires_grad_(requires_grad=False)
    widen_on_use(module, dtype, made={name: partial(read_tensor, stored[name]) for name in late})
    return module


def skeleton_module(
    checkpoint: Checkpoint, component: ComponentName, *, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, StoredTensor]]:
    """One component for tracing: real parameters that occupy one element each, and their sources.

    A trace needs parameters of the right shape and dtype, not their values. Each is one number
    expanded to its shape, so a 10 GB network costs no memory; the weights are streamed from the
    checkpoint into the exported file afterwards.

    Returns:
        The module, and for each of its parameters where the weight is stored.

    Raises:
        CheckpointError: the weights do not fit the config.
    """
    module = _empty_module(checkpoint, component)
    stored = _match_parameters(module, checkpoint, component)
    cells = {
        name: _one_element(parameter.shape, dtype=dtype)
        for name, parameter in module.named_parameters()
    }
    module.load_state_dict(cells, strict=True, assign=True)
    return module.eval().requires_grad_(requires_grad=False), stored


def _one_element(shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """A tensor of a shape that takes no memory. Not zero: a norm of nothing would warn."""
    return torch.full((1,) * len(shape), 1e-3, dtype=dtype).expand(tuple(shape))


def check_weights(checkpoint: Checkpoint, component: ComponentName) -> None:
    """Pair a component's weights with what its config implies; no weight is read.

    Raises:
        CheckpointError: one is missing, unknown, or of another shape.
    """
    _match_parameters(_empty_module(checkpoint, component), checkpoint, component)


def _empty_module(checkpoint: Checkpoint, component: ComponentName) -> nn.Module:
    folder = checkpoint.component_folder(component)
    return empty_module(component, read_json(folder / "config.json"))


def empty_module(component: ComponentName, network_config: Mapping[str, object]) -> nn.Module:
    """The component's module as its network's config says, its parameters on the meta device."""
    from accelerate import init_empty_weights

    config = dict(network_config)
    # Buffers are computed, not stored, so they must be real.
    with init_empty_weights(include_buffers=False):
        match component:
            case "text_encoder" | "text_encoder_2":
                return _empty_text_encoder(component, config)
            case "unet":
                from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

                return UnetModule(UNet2DConditionModel.from_config(config))
            case "vae_encoder" | "vae_decoder":
                from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

                vae = AutoencoderKL.from_config(config)
                return (
                    VaeEncoderModule(vae) if component == "vae_encoder" else VaeDecoderModule(vae)
                )
            case "preview_decoder":
                return _empty_preview_decoder(config)


def _empty_preview_decoder(config: dict[str, object]) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    # A second name of decoder_block_out_channels, which diffusers writes, but warns of on reading.
    config.pop("block_out_channels", None)
    vae = AutoencoderTiny.from_config(config)
    return PreviewDecoderModule(
        vae.get_submodule("decoder"), scaling_factor=float(vae.config.scaling_factor)
    )


def _empty_text_encoder(component: ComponentName, config: dict[str, object]) -> nn.Module:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    # Eager attention writes the causal mask out as plain operators, which every format has.
    clip_config = CLIPTextConfig.from_dict(config, attn_implementation="eager")
    pooled = component == "text_encoder_2"
    model = CLIPTextModelWithProjection if pooled else CLIPTextModel
    return TextEncoderModule(
        model(clip_config),
        pooled_name="text_embeds" if pooled else "pooler_output",
        num_hidden_layers=clip_config.num_hidden_layers,
    )


def _match_parameters(
    module: nn.Module, checkpoint: Checkpoint, component: ComponentName
) -> dict[str, StoredTensor]:
    """Pair each parameter of the module with the stored weight it is loaded from."""
    prefix = cast("ComponentModule", module).prefix
    stored = {
        prefix + name: tensor for name, tensor in checkpoint.stored_tensors(component).items()
    }
    parameters = dict(module.named_parameters())
    missing = sorted(parameters.keys() - stored.keys())
    unknown = sorted(stored.keys() - parameters.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{component} weights: got {len(missing)} missing {missing[:3]} and {len(unknown)} "
            f"unknown {unknown[:3]}, want exactly the {len(parameters)} tensors its config implies."
        )
    for name, parameter in parameters.items():
        shape = stored[name].shape
        if shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{component} weight {name!r}: got {list(shape)}, want {list(parameter.shape)} "
                "by its config."
            )
    return stored
