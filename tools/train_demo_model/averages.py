"""A first state for the autoencoder that is an autoencoder already, of 8 x 8 averages.

From random weights, thousands of steps are spent on colours alone: a group norm of a picture of one
colour sees nothing but its sign. Here colours go through from the start, each in a channel and,
negated, in another, beside two constants that keep the norms from following the picture. Every
residual branch starts at zero. What is left to learn is where the edges are.
"""

import torch
from diffusers import AutoencoderKL

_CONSTANT = 2.0
_NUM_CARRIED = 8
"""Red, green and blue, the three negated, the constant, and that negated."""

_LOG_VARIANCE = -6.0


@torch.no_grad()
def start_from_averages(vae: AutoencoderKL) -> None:
    """Set the weights of an AutoencoderKL of at least 8 channels and one group a norm.

    SiLU(x) - SiLU(-x) = x: the last convolutions take differences of channels, and the path from
    picture to latents and back is linear, but for the norms' scale.
    """
    for part in (vae.encoder, vae.decoder):
        for module in part.modules():
            match type(module).__name__:
                case "ResnetBlock2D":
                    _zero(module.conv2)
                    if module.conv_shortcut is not None:
                        _carry(module.conv_shortcut)
                case "Attention":
                    _zero(module.to_out[0])
                case "Downsample2D":
                    _carry(module.conv, taps=((0, 0), (0, 1), (1, 0), (1, 1)))
                case "Upsample2D":
                    _carry(module.conv, taps=((1, 1),))
                case _:
                    pass
    for first in (vae.encoder.conv_in, vae.decoder.conv_in):
        first.weight[:_NUM_CARRIED] = 0
        first.bias[:_NUM_CARRIED] = 0
        first.weight[:3, :3, 1, 1] = torch.eye(3)
        first.weight[3:6, :3, 1, 1] = -torch.eye(3)
        first.bias[6], first.bias[7] = _CONSTANT, -_CONSTANT
    for last in (vae.encoder.conv_out, vae.decoder.conv_out):
        last.weight[:3] = 0
        last.bias[:3] = 0
        last.weight[:3, :3, 1, 1] = torch.eye(3)
        last.weight[:3, 3:6, 1, 1] = -torch.eye(3)
    num_latents = vae.quant_conv.weight.shape[0] // 2
    for square in (vae.quant_conv, vae.post_quant_conv):
        square.weight[:] = torch.eye(len(square.weight))[..., None, None]
        square.bias[:] = 0
    vae.quant_conv.weight[num_latents:] = 0
    vae.quant_conv.bias[num_latents:] = _LOG_VARIANCE


def _zero(layer: torch.nn.Conv2d | torch.nn.Linear) -> None:
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()


def _carry(conv: torch.nn.Conv2d, *, taps: tuple[tuple[int, int], ...] = ((0, 0),)) -> None:
    """Take the carried channels through as they are, averaged over the taps; the rest is small."""
    conv.weight[:_NUM_CARRIED] = 0
    if conv.bias is not None:
        conv.bias[:_NUM_CARRIED] = 0
    for row, column in taps:
        conv.weight[:_NUM_CARRIED, :_NUM_CARRIED, row, column] = torch.eye(_NUM_CARRIED) / len(taps)
