"""Matrix products and attention.

Definitions: defs iOS15/linear.py, iOS17/linear.py, iOS18/transformers.py.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.runtimes._mil.operators.arguments import Arguments, Operator

if TYPE_CHECKING:
    import torch


def einsum(arguments: Arguments) -> "torch.Tensor":
    """A product written as "nchw,nwhu->nchu" or an equivalent."""
    import torch

    return torch.einsum(arguments.text("equation"), *arguments.tensors("values"))


def linear(arguments: Arguments) -> "torch.Tensor":
    """The product with the transposed weight, plus bias."""
    import torch

    return torch.nn.functional.linear(
        arguments.tensor("x"), arguments.tensor("weight"), arguments.optional_tensor("bias")
    )


def matmul(arguments: Arguments) -> "torch.Tensor":
    """The matrix product of the last two axes, either transposed first; others are broadcast."""
    x, y = arguments.tensor("x"), arguments.tensor("y")
    if arguments.flag("transpose_x", default=False) and x.ndim > 1:
        x = x.transpose(-1, -2)
    if arguments.flag("transpose_y", default=False) and y.ndim > 1:
        y = y.transpose(-1, -2)
    return x @ y


def scaled_dot_product_attention(arguments: Arguments) -> "torch.Tensor":
    """softmax(query · keyᵀ / √width + mask) · value; a false element of the mask means -inf.

    With a mask it is written out: torch gives 0 for a row that is masked altogether, where the
    definition gives NaN.
    """
    import torch

    query, key, value = (arguments.tensor(name) for name in ("query", "key", "value"))
    mask = arguments.optional_tensor("attn_mask")
    if mask is None:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    attended: torch.Tensor = (scores + mask).softmax(-1) @ value
    return attended


OPERATORS: Mapping[str, Operator] = {
    "einsum": einsum,
    "linear": linear,
    "matmul": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
