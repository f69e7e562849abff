"""The networks with the inputs and outputs of Apple's converter, for tracing to Core ML.

Imports torch when it is itself imported, so import it inside the function that needs it.

Source: apple/ml-stable-diffusion at e12202c, python_coreml_stable_diffusion/torch2coreml.py.
"""

from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from triptych.types import ComponentName


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
    """A U-Net that takes its text as [batch, width, 1, 77], and one timestep for each row."""

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
    ) -> Tensor:
        """Predict the noise."""
        tokens = encoder_hidden_states.squeeze(2).transpose(1, 2)
        prediction: Tensor = self.unet(sample, timestep, tokens, text_embeds, time_ids)[0]
        return prediction


@final
class AppleVae(nn.Module):
    """Either half of the VAE; nothing but names differ."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    @override
    def forward(self, tensor: Tensor) -> Tensor:
        """Decode latents, or encode an image."""
        result: Tensor = self.vae(tensor)[0]
        return result


def apple_module(module: nn.Module, component: ComponentName) -> nn.Module:
    """A component with Apple's inputs and outputs, in the order of its spec."""
    match component:
        case "text_encoder" | "text_encoder_2":
            return AppleTextEncoder(module).eval()
        case "unet":
            return AppleUnet(module).eval()
        case "vae_encoder" | "vae_decoder":
            return AppleVae(module).eval()
