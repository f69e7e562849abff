"""The networks with the inputs and outputs of Apple's converter, for tracing to Core ML.

Imports torch when it is itself imported, so import it inside the function that needs it.

Source: apple/ml-stable-diffusion at e12202c, python_coreml_stable_diffusion/torch2coreml.py.
"""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from triptych.models.split_einsum import use_split_einsum
from triptych.types import ComponentName, CoreMlAttention


@final
class AppleTextEncoder(nn.Module):
    """A text encoder that takes its ids as float32, for which Swift has arrays."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        names = list(encoder.output_names)  # type: ignore[arg-type]
        states = [name for name in names if name.startswith("hidden_states.")]
        pooled = "text_embeds" if "text_embeds" in names else "pooler_output"
        self._hidden, self._pooled = names.index(states[-2]), names.index(pooled)

    @override
    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Give hidden_embeds [1, 77, width] of the last layer but one, and pooled_outputs."""
        outputs = self.encoder(input_ids.to(torch.int32))
        return outputs[self._hidden], outputs[self._pooled]


@final
class AppleUnet(nn.Module):
    """A U-Net that takes its text as [batch, width, 1, 77], and one timestep for each row.

    Attributes:
        unet: the network.
        takes_bc1s: its transformers take the text so; others want it transposed.
    """

    def __init__(self, unet: nn.Module, *, takes_bc1s: bool) -> None:
        super().__init__()
        self.unet = unet
        self.takes_bc1s = takes_bc1s

    @override
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """Predict the noise."""
        text = encoder_hidden_states
        if not self.takes_bc1s:
            text = text.squeeze(2).transpose(1, 2)
        prediction: Tensor = self.unet(sample, timestep, text, text_embeds, time_ids)[0]
        return prediction


@final
class AppleVae(nn.Module):
    """Either half of the VAE, or the preview decoder; nothing but names differ."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    @override
    def forward(self, tensor: Tensor) -> Tensor:
        """Decode latents, or encode an image."""
        result: Tensor = self.vae(tensor)[0]
        return result


def apple_module(
    module: nn.Module, component: ComponentName, *, attention: CoreMlAttention
) -> nn.Module:
    """A component with Apple's inputs and outputs, in the order of its spec.

    Args:
        module: the component as `modules.load_module` gives it; a U-Net is rewritten in place.
        component: which component it is.
        attention: how a U-Net's attention is written.
    """
    match component:
        case "text_encoder" | "text_encoder_2":
            return AppleTextEncoder(module).eval()
        case "unet":
            split = attention == "split-einsum"
            if split:
                use_split_einsum(module.get_submodule("unet"))
            return AppleUnet(module, takes_bc1s=split).eval()
        case "vae_encoder" | "vae_decoder" | "preview_decoder":
            return AppleVae(module).eval()
