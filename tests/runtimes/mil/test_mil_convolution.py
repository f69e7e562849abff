"""Convolution against its definition, written as a sum."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
import pytest
from coremltools.converters.mil import Builder

Compute = Callable[..., list[np.ndarray]]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def convolution(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    padding: list[tuple[int, int]],
    strides: list[int],
    dilations: list[int],
    groups: int,
) -> np.ndarray:
    """One sum of products for each element of the result, in float64."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *padding])
    kernel = weight.shape[2:]
    lengths = [
        (padded.shape[2 + axis] - (kernel[axis] - 1) * dilations[axis] - 1) // strides[axis] + 1
        for axis in range(len(kernel))
    ]
    result = np.empty((x.shape[0], weight.shape[0], *lengths))
    channels, filters = weight.shape[1], weight.shape[0] // groups
    for place in np.ndindex(*lengths):
        window = tuple(
            slice(at * stride, at * stride + (size - 1) * dilation + 1, dilation)
            for at, stride, size, dilation in zip(place, strides, kernel, dilations, strict=True)
        )
        for number in range(weight.shape[0]):
            first = number // filters * channels
            seen = padded[(slice(None), slice(first, first + channels), *window)]
            products = (seen * weight[number]).reshape(len(x), -1)
            result[(slice(None), number, *place)] = products.sum(axis=1) + bias[number]
    return result


@dataclass(frozen=True, kw_only=True)
class Case:
    """A convolution; what is None is not written in the program."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    pad_type: str | None = None
    pad: list[int] | None = None
    strides: list[int] | None = None
    dilations: list[int] | None = None
    groups: int | None = None

    def written(self) -> dict[str, object]:
        names = ("pad_type", "pad", "strides", "dilations", "groups")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def padding(self) -> list[tuple[int, int]]:
        """By the definition: ceil(length / stride) results for the two kinds of same."""
        spatial = len(self.shape) - 2
        if self.pad_type in (None, "valid"):
            return [(0, 0)] * spatial
        if self.pad_type == "custom" and self.pad:
            return list(zip(self.pad[::2], self.pad[1::2], strict=True))
        ones = [1] * spatial
        padding = []
        for length, size, stride, dilation in zip(
            self.shape[2:],
            self.kernel[2:],
            self.strides or ones,
            self.dilations or ones,
            strict=True,
        ):
            reach = (size - 1) * dilation + 1
            total = max(0, (ceil(length / stride) - 1) * stride + reach - length)
            after = ceil(total / 2) if self.pad_type == "same" else total // 2
            padding.append((total - after, after))
        return padding


PLANE, THREE = (1, 2, 7, 6), (3, 2, 3, 3)
CASES = {
    "valid": Case(shape=(2, 4, 7, 6), kernel=(5, 4, 3, 2), pad_type="valid"),
    "valid ignores pad": Case(shape=PLANE, kernel=THREE, pad_type="valid", pad=[1, 1, 1, 1]),
    "custom": Case(shape=PLANE, kernel=THREE, pad_type="custom", pad=[1, 1, 1, 1]),
    "custom uneven": Case(shape=PLANE, kernel=THREE, pad_type="custom", pad=[0, 1, 2, 0]),
    "custom strided": Case(
        shape=(1, 2, 8, 8), kernel=THREE, pad_type="custom", pad=[0, 1, 0, 1], strides=[2, 2]
    ),
    "same": Case(shape=PLANE, kernel=(3, 2, 2, 4), pad_type="same"),
    "same strided": Case(shape=PLANE, kernel=THREE, pad_type="same", strides=[2, 3]),
    "same_lower": Case(shape=PLANE, kernel=(3, 2, 2, 4), pad_type="same_lower", strides=[1, 2]),
    "same dilated": Case(
        shape=(1, 2, 9, 8), kernel=(3, 2, 3, 2), pad_type="same", dilations=[2, 3]
    ),
    "dilated": Case(shape=(1, 2, 9, 8), kernel=(3, 2, 3, 2), dilations=[2, 3]),
    "groups": Case(shape=(1, 4, 5, 5), kernel=(6, 2, 3, 3), groups=2),
    "depthwise": Case(shape=(1, 3, 5, 5), kernel=(6, 1, 3, 3), groups=3),
    "one axis": Case(shape=(2, 3, 9), kernel=(4, 3, 3), pad_type="custom", pad=[2, 1], strides=[2]),
    "three axes": Case(shape=(1, 2, 4, 5, 3), kernel=(3, 2, 2, 3, 2), pad_type="same"),
}


@pytest.mark.parametrize("name", CASES)
def test_conv(name: str, compute: Compute) -> None:
    case = CASES[name]
    weight, bias, feed = noise(*case.kernel), noise(case.kernel[0]), {"x": noise(*case.shape)}
    ones = [1] * (len(case.shape) - 2)

    (got,) = compute(lambda x: Builder.conv(x=x, weight=weight, bias=bias, **case.written()), feed)

    want = convolution(
        feed["x"],
        weight,
        bias,
        padding=case.padding(),
        strides=case.strides or ones,
        dilations=case.dilations or ones,
        groups=case.groups or 1,
    )
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_conv_with_a_computed_weight(compute: Compute) -> None:
    feed = {"x": noise(1, 2, 5, 5), "weight": noise(3, 2, 3, 3)}
    (got,) = compute(lambda x, weight: Builder.conv(x=x, weight=weight), feed)
    want = convolution(
        **feed,
        bias=np.zeros(3),
        padding=[(0, 0)] * 2,
        strides=[1, 1],
        dilations=[1, 1],
        groups=1,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
