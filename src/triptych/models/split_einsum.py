"""The U-Net's transformers in the layout of Apple's Neural Engine: [batch, channels, 1, tokens].

Imports torch and diffusers when it is itself imported, so import it inside the function that needs
it.

Source:
    Apple 2022, "Deploying Transformers on the Apple Neural Engine"
    (machinelearning.apple.com/research/neural-engine-transformers): the layout, 1 x 1 convolutions
    for linear layers, one small attention for each head, few copies between layouts. What
    ml-stable-diffusion calls SPLIT_EINSUM.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import final

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from triptych.errors import CheckpointError, UsageError

_TRANSFORMER: Mapping[str, type] = {
    "norm": nn.GroupNorm,
    "proj_in": nn.Linear,
    "transformer_blocks": nn.ModuleList,
    "proj_out": nn.Linear,
}
"""The parts of a transformer of SDXL. Linear means no subclass, such as LoRA's."""

_ATTENTION: Mapping[str, type] = {
    "to_q": nn.Linear,
    "to_k": nn.Linear,
    "to_v": nn.Linear,
    "to_out": nn.ModuleList,
    "to_out.0": nn.Linear,
    "to_out.1": nn.Dropout,
}

_BLOCK: Mapping[str, type] = {
    "norm1": nn.LayerNorm,
    "attn1": Attention,
    **{f"attn1.{name}": kind for name, kind in _ATTENTION.items()},
    "norm2": nn.LayerNorm,
    "attn2": Attention,
    **{f"attn2.{name}": kind for name, kind in _ATTENTION.items()},
    "norm3": nn.LayerNorm,
    "ff": FeedForward,
    "ff.net": nn.ModuleList,
    "ff.net.0": GEGLU,
    "ff.net.0.proj": nn.Linear,
    "ff.net.1": nn.Dropout,
    "ff.net.2": nn.Linear,
}
"""The parts of each of its blocks."""

_SETTINGS: Mapping[type, Mapping[str, object]] = {
    BasicTransformerBlock: {"norm_type": "layer_norm", "only_cross_attention": False},
    Attention: {
        "is_causal": False,
        "rescale_output_factor": 1.0,
        "residual_connection": False,
        "upcast_attention": False,
        "upcast_softmax": False,
    },
    nn.LayerNorm: {"elementwise_affine": True},
}
"""What parts of the right kind must be set to; None counts as False."""


def use_split_einsum(unet: nn.Module) -> None:
    """Rewrite the transformers of a loaded U-Net in place; what it computes stays the same.

    `unet` is a diffusers UNet2DConditionModel as SDXL configures it. Afterwards its
    encoder_hidden_states may also be [batch, width, 1, tokens], as in Apple's own packages; as
    diffusers has them, [batch, tokens, width], they are transposed once in each transformer.

    Parameters keep their memory and their names; weights of linear layers become [out, in, 1, 1],
    those of norms [channels, 1, 1]. For inference: dropout is left out. Where torch itself runs it,
    in float32: in half precision the norms would square half-precision numbers, which they no
    longer do once coremltools has fused them.

    Raises:
        CheckpointError: a part of the network is not as in SDXL; nothing has been changed.
    """
    _check_network(unet)
    for name, transformer in _transformers(unet).items():
        parent, _, child = name.rpartition(".")
        rewritten = _Transformer(transformer).train(transformer.training)
        unet.get_submodule(parent).register_module(child, rewritten)


@final
class _Transformer(nn.Module):
    """Transformer2DModel, called as diffusers' blocks call it."""

    def __init__(self, transformer: Transformer2DModel) -> None:
        super().__init__()
        self.norm = transformer.norm
        self.proj_in = _pointwise(transformer.proj_in)
        self.transformer_blocks = nn.ModuleList(map(_Block, transformer.transformer_blocks))
        self.proj_out = _pointwise(transformer.proj_out)

    @override
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, object] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Transform an image.

        Args:
            hidden_states: [batch, channels, height, width].
            encoder_hidden_states: [batch, tokens, width] or [batch, width, 1, tokens].
            attention_mask: not supported.
            encoder_attention_mask: not supported.
            cross_attention_kwargs: not supported.
            return_dict: not supported.

        Returns:
            A tuple of one tensor, shaped as `hidden_states`.

        Raises:
            UsageError: something is given that is not supported.
        """
        if attention_mask is not None or encoder_attention_mask is not None:
            raise UsageError("split-einsum attention: got a mask, want none: SDXL masks no tokens.")
        if cross_attention_kwargs or return_dict:
            raise UsageError(
                "split-einsum attention: got cross_attention_kwargs or return_dict, want neither."
            )
        if encoder_hidden_states.ndim == 3:
            encoder_hidden_states = encoder_hidden_states.transpose(1, 2).unsqueeze(2)
        batch, _, height, width = hidden_states.shape
        tokens: Tensor = self.proj_in(self.norm(hidden_states))
        tokens = tokens.reshape(batch, -1, 1, height * width)
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states)
        image: Tensor = self.proj_out(tokens).reshape(batch, -1, height, width)
        return (image + hidden_states,)


@final
class _Block(nn.Module):
    """BasicTransformerBlock: attention to the image, to the text, and a feed-forward network."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        self.norm1 = _ChannelNorm(block.norm1)
        self.attn1 = _Attention(block.attn1)
        self.norm2 = _ChannelNorm(block.norm2)
        self.attn2 = _Attention(block.attn2)
        self.norm3 = _ChannelNorm(block.norm3)
        gated, _, last = block.ff.net
        net = nn.Sequential(_GatedGelu(gated), nn.Identity(), _pointwise(last))
        self.ff = nn.Sequential(OrderedDict(net=net))

    @override
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Transform [batch, channels, 1, tokens] beside [batch, width, 1, tokens of the text]."""
        normed = self.norm1(hidden_states)
        hidden_states = self.attn1(normed, normed) + hidden_states
        hidden_states = self.attn2(self.norm2(hidden_states), encoder_hidden_states) + hidden_states
        feed_forward: Tensor = self.ff(self.norm3(hidden_states))
        return feed_forward + hidden_states


@final
class _Attention(nn.Module):
    """Attention with one pair of matrix products for each head, small enough for fast memory."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.scale: float = attention.scale
        self.to_q = _pointwise(attention.to_q)
        self.to_k = _pointwise(attention.to_k)
        self.to_v = _pointwise(attention.to_v)
        self.to_out = nn.Sequential(_pointwise(attention.to_out[0]))

    @override
    def forward(self, hidden_states: Tensor, attended: Tensor) -> Tensor:
        """softmax(QKᵀ · scale) V for each head, joined and projected.

        Args:
            hidden_states: [batch, channels, 1, queries].
            attended: [batch, width, 1, keys].

        Returns:
            [batch, channels, 1, queries].

        Source:
            Vaswani et al. 2017, arXiv:1706.03762, sections 3.2.1 and 3.2.2. Keys are scaled instead
            of scores: fewer products, and scores that overflow half precision later.
        """
        queries = self.to_q(hidden_states).chunk(self.heads, dim=1)
        # The one transposition. A scale before it would be folded into the weights by coremltools,
        # which are to stay the checkpoint's.
        keys = (self.to_k(attended).transpose(1, 3) * self.scale).chunk(self.heads, dim=3)
        values = self.to_v(attended).chunk(self.heads, dim=1)
        heads = map(_attend, queries, keys, values)
        joined: Tensor = self.to_out(torch.cat(tuple(heads), dim=1))
        return joined


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head: [b, c, 1, q], [b, k, 1, c] and [b, c, 1, k] to [b, c, 1, q]."""
    scores = torch.einsum("bchq,bkhc->bkhq", query, key)
    return torch.einsum("bkhq,bchk->bchq", scores.softmax(dim=1), value)


@final
class _GatedGelu(nn.Module):
    """GEGLU along the channels.

    Source:
        Shazeer 2020, arXiv:2002.05202, equation 6.
    """

    def __init__(self, gated: GEGLU) -> None:
        super().__init__()
        self.proj = _pointwise(gated.proj)

    @override
    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, channels, 1, tokens] to as many channels as half of what `proj` gives."""
        values, gates = self.proj(hidden_states).chunk(2, dim=1)
        gated: Tensor = values * functional.gelu(gates)
        return gated


@final
class _ChannelNorm(nn.Module):
    """LayerNorm over the channels of [batch, channels, 1, tokens].

    Written so that coremltools makes one layer_norm of it (its pass fuse_layernorm_or_instancenorm,
    pattern 5), then scaled and shifted. Apple shifts by bias/weight before it scales, which that
    pass takes in too, but which has no result where a weight is 0.
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = _viewed(norm.weight, num_axes=2)
        self.bias = _viewed(norm.bias, num_axes=2)

    @override
    def forward(self, hidden_states: Tensor) -> Tensor:
        """Each token to mean 0 and variance 1, then `weight` and `bias` a channel."""
        centred = hidden_states - hidden_states.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    """A linear layer as a 1 x 1 convolution on the same memory."""
    convolution = nn.Conv2d(
        linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta"
    )
    convolution.weight = _viewed(linear.weight, num_axes=2)
    convolution.bias = linear.bias
    return convolution


def _viewed(parameter: Tensor, *, num_axes: int) -> nn.Parameter:
    """A parameter with axes of length 1 behind its own, on the same memory."""
    view = parameter.detach()[(..., *[None] * num_axes)]
    return nn.Parameter(view, requires_grad=parameter.requires_grad)


def _transformers(unet: nn.Module) -> dict[str, Transformer2DModel]:
    return {
        name: module for name, module in unet.named_modules() if type(module) is Transformer2DModel
    }


def _check_network(unet: nn.Module) -> None:
    """Refuse a network that this module would rewrite wrongly, or in part.

    Raises:
        CheckpointError: names the part, what it is and what SDXL has there.
    """
    transformers = _transformers(unet)
    if not transformers:
        raise CheckpointError(
            "unet: got no Transformer2DModel, want a U-Net of SDXL that is not rewritten yet."
        )
    for name, module in unet.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in transformers)
        if isinstance(module, Attention | DualTransformer2DModel) and not inside:
            raise CheckpointError(
                f"unet {name!r}: got {type(module).__name__}, want every attention inside a "
                "Transformer2DModel, as in SDXL."
            )
    if "encoder_hid_proj" in dict(unet.named_children()):
        raise CheckpointError(
            "unet 'encoder_hid_proj': got a projection of the encoders' states, want none as in "
            "SDXL. Unload its adapters."
        )
    for name, transformer in transformers.items():
        _check_parts(dict(transformer.named_children()), _TRANSFORMER, where=name)
        for number, block in enumerate(transformer.transformer_blocks):
            parts = {part: module for part, module in block.named_modules() if part}
            _check_parts(parts, _BLOCK, where=f"{name}.transformer_blocks.{number}")
        for part, module in transformer.named_modules():
            _check_settings(module, where=f"{name}.{part}")


def _check_parts(parts: Mapping[str, nn.Module], wanted: Mapping[str, type], *, where: str) -> None:
    for name in sorted(parts.keys() | wanted.keys()):
        kind = type(parts[name]) if name in parts else None
        if kind is not wanted.get(name):
            got, want = (each.__name__ if each else "nothing" for each in (kind, wanted.get(name)))
            raise CheckpointError(f"unet '{where}.{name}': got {got}, want {want} as in SDXL.")


def _check_settings(module: nn.Module, *, where: str) -> None:
    for name, want in _SETTINGS.get(type(module), {}).items():
        got = getattr(module, name)
        if (False if got is None else got) != want:
            raise CheckpointError(f"unet {where!r} {name}: got {got!r}, want {want!r} as in SDXL.")
    if type(module) is Attention and module.inner_kv_dim != module.inner_dim:
        raise CheckpointError(
            f"unet {where!r}: got keys of width {module.inner_kv_dim}, want the queries' "
            f"{module.inner_dim} as in SDXL."
        )
