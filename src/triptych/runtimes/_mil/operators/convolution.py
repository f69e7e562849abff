"""Convolution and nearest-neighbour enlargement.

Definitions: defs iOS15/conv.py, _utils.py (aggregated_pad), iOS15/image_resizing.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch


def conv(arguments: Arguments) -> "torch.Tensor":
    """Convolution over one, two or three axes.

    With pad_type "same" the result has ceil(length / stride) elements an axis; what cannot be
    padded evenly goes after, or with "same_lower" before. `pad` counts only for "custom".
    """
    import torch

    x, weight = arguments.tensor("x"), arguments.tensor("weight")
    spatial = x.ndim - 2
    strides = arguments.integers("strides", [1] * spatial)
    dilations = arguments.integers("dilations", [1] * spatial)
    padding = _padding(arguments, x, weight, strides=strides, dilations=dilations)
    if any(before or after for before, after in padding):
        last_axis_first = [amount for pair in reversed(padding) for amount in pair]
        x = torch.nn.functional.pad(x, last_axis_first)
    functions = (
        torch.nn.functional.conv1d,
        torch.nn.functional.conv2d,
        torch.nn.functional.conv3d,
    )
    return functions[spatial - 1](
        x,
        weight,
        arguments.optional_tensor("bias"),
        stride=strides,
        dilation=dilations,
        groups=arguments.integer("groups", 1),
    )


def upsample_nearest_neighbor(arguments: Arguments) -> "torch.Tensor":
    """The last two axes enlarged by factors; each result is floor(length * factor) long."""
    import torch

    x = arguments.tensor("x")
    factors = (
        arguments.number("scale_factor_height", 1.0),
        arguments.number("scale_factor_width", 1.0),
    )
    images = x.reshape(1, -1, *x.shape[-2:])
    enlarged = torch.nn.functional.interpolate(images, scale_factor=factors, mode="nearest")
    return enlarged.reshape(*x.shape[:-2], *enlarged.shape[-2:])


def _padding(
    arguments: Arguments,
    x: "torch.Tensor",
    weight: "torch.Tensor",
    *,
    strides: list[int],
    dilations: list[int],
) -> list[tuple[int, int]]:
    """How many zeros before and after each spatial axis."""
    pad_type = arguments.text("pad_type", "valid")
    lengths, kernel = x.shape[2:], weight.shape[2:]
    match pad_type:
        case "valid":
            return [(0, 0)] * len(lengths)
        case "custom":
            amounts = arguments.integers("pad", [0] * 2 * len(lengths))
            return list(zip(amounts[::2], amounts[1::2], strict=True))
        case "same" | "same_lower":
            padding = []
            for length, size, stride, dilation in zip(
                lengths, kernel, strides, dilations, strict=True
            ):
                reach = (size - 1) * dilation + 1
                total = max(0, (-(-length // stride) - 1) * stride + reach - length)
                less, more = total // 2, total - total // 2
                padding.append((less, more) if pad_type == "same" else (more, less))
            return padding
        case _:
            raise arguments.refusal(f"pad_type {pad_type}", "valid, custom, same or same_lower")


OPERATORS: Mapping[str, Operator] = {
    "conv": conv,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
