"""How a graph may lay a tensor out that PyTorch has in another way, and back."""

from triptych.types import Array


def in_reference_layout(array: Array, shape: tuple[int, ...]) -> Array | None:
    """A graph's array as the reference has it; None where it cannot be the same tensor.

    Apple's Neural Engine wants tokens as [batch, channels, 1, tokens], and a projection of an
    image's tokens as a convolution of the image, where PyTorch has [batch, tokens, channels].
    """
    if array.shape == shape:
        return array
    if array.ndim == 4 and len(shape) == 3 and _as_tokens(array.shape) == shape:
        batch, channels, height, width = array.shape
        return array.reshape(batch, channels, height * width).transpose(0, 2, 1)
    return None


def in_graph_layout(array: Array, shape: tuple[int, ...]) -> Array:
    """The reference's array as a graph has it; the way back of `in_reference_layout`."""
    if array.shape == shape:
        return array
    return array.transpose(0, 2, 1).reshape(shape)


def may_be_same(graph_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether `in_reference_layout` takes an array of this shape."""
    return graph_shape == shape or (len(graph_shape) == 4 and _as_tokens(graph_shape) == shape)


def _as_tokens(shape: tuple[int, ...]) -> tuple[int, ...]:
    batch, channels, height, width = shape
    return batch, height * width, channels
