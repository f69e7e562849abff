"""The initial noise beside torch.randn and diffusers' randn_tensor."""

import math

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.sampling.noise import NoiseStream, draw_noise, gaussian_noise
from triptych.types import Array

# Measured over 50 million values: 4.8e-7 beside torch's AVX2 code (at most 4 float32 ulps), and
# 2.4e-6 beside its portable code (ATEN_CPU_CAPABILITY=default), which rounds the angle in another
# place; the two are 2.1e-6 apart themselves.
IS_AVX2 = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
MAX_DIFFERENCE = 1e-6 if IS_AVX2 else 4e-6
MAX_ULPS = 6

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63, 2**64 - 1, -1, -5, -(2**63)]
SHAPES = [
    (),
    (0, 3),
    *((size,) for size in range(1, 41)),
    (1, 4, 16, 16),
    (2, 4, 13, 9),
    (1, 4, 128, 128),
]


def torch_noise(shape: tuple[int, ...], seed: int) -> Array:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator).numpy()


def assert_same_noise(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=MAX_DIFFERENCE)
    if IS_AVX2:
        np.testing.assert_array_max_ulp(actual, expected, maxulp=MAX_ULPS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_shape(seed: int) -> None:
    for shape in SHAPES:
        assert_same_noise(gaussian_noise(shape, seed=seed), torch_noise(shape, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_than_16_values_are_equal(seed: int) -> None:
    for size in range(16):
        np.testing.assert_array_equal(
            gaussian_noise((size,), seed=seed), torch_noise((size,), seed)
        )


@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    seed=st.integers(-(2**63), 2**64 - 1),
)
@settings(max_examples=300, deadline=None)
def test_any_shape_and_seed(shape: tuple[int, ...], seed: int) -> None:
    assert_same_noise(gaussian_noise(shape, seed=seed), torch_noise(shape, seed))


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_any_size(size: int, seed: int) -> None:
    assert_same_noise(gaussian_noise((size,), seed=seed), torch_noise((size,), seed))


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 4, 13, 9), (2, 4, 1, 1)])
def test_one_generator_of_diffusers(shape: tuple[int, int, int, int]) -> None:
    expected = randn_tensor(shape, generator=torch.Generator("cpu").manual_seed(42)).numpy()
    assert_same_noise(draw_noise(NoiseStream(seeds=(42,)), shape)[0], expected)


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (3, 4, 13, 9), (2, 3, 1, 1)])
def test_list_of_generators_of_diffusers(shape: tuple[int, int, int, int]) -> None:
    seeds = SEEDS[: shape[0]]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    expected = randn_tensor(shape, generator=generators).numpy()
    assert math.prod(shape) == expected.size
    assert_same_noise(draw_noise(NoiseStream(seeds=tuple(seeds)), shape)[0], expected)


def test_list_of_one_generator_of_diffusers() -> None:
    # diffusers takes a list of one as the generator itself: one draw for the whole batch.
    expected = randn_tensor((2, 4, 8, 8), generator=[torch.Generator("cpu").manual_seed(9)]).numpy()
    assert_same_noise(draw_noise(NoiseStream(seeds=(9,)), (2, 4, 8, 8))[0], expected)


def both_streams(
    seeds: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> list[tuple[Array, Array]]:
    """Draws one after the other, here and from torch's generators."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    stream, draws = NoiseStream(seeds=seeds), []
    for shape in shapes:
        noise, stream = draw_noise(stream, shape)
        draws.append((noise, randn_tensor(shape, generator=generators).numpy()))
    return draws


@pytest.mark.parametrize("seeds", [(42,), (1, 2**40), (0, -1)])
@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (2, 4, 13, 9), (2, 4, 1, 1), (2, 3, 1, 5)])
def test_a_stream_goes_on_where_it_stopped(seeds: tuple[int, ...], shape: tuple[int, ...]) -> None:
    for ours, theirs in both_streams(seeds, [shape] * 6):
        assert_same_noise(ours, theirs)


@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.tuples(st.just(1), st.integers(0, 40)), max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_any_draws_one_after_the_other(seed: int, shapes: list[tuple[int, ...]]) -> None:
    # Odd draws below 16 leave a value over, which torch keeps for the next of them.
    for ours, theirs in both_streams((seed,), shapes):
        assert_same_noise(ours, theirs)


def test_a_stream_is_as_far_as_torchs_generator() -> None:
    generator = torch.Generator("cpu").manual_seed(5)
    _, stream = draw_noise(NoiseStream(seeds=(5,)), (1, 4, 13, 9))
    torch.randn((1, 4, 13, 9), generator=generator)
    skipped = torch.Generator("cpu").manual_seed(5)
    torch.empty(stream.words_drawn, dtype=torch.float32).random_(generator=skipped)
    assert torch.equal(torch.randn(100, generator=skipped), torch.randn(100, generator=generator))
