"""The initial noise, from the numbers alone; beside torch it is in tests/reference."""

import numpy as np
import pytest

from triptych.errors import UsageError
from triptych.sampling.noise import NoiseStream, draw_noise, gaussian_noise


def test_known_values() -> None:
    # Made with torch 2.13.0: torch.randn(n, generator=torch.Generator("cpu").manual_seed(42)).
    few = np.array([0.33669037, 0.1288094, 0.23446237], dtype=np.float32)
    many = np.array([1.9269153, 1.4872841, 0.9007172, -2.105521], dtype=np.float32)
    np.testing.assert_allclose(gaussian_noise((3,), seed=42), few, rtol=0, atol=1e-7)
    np.testing.assert_allclose(gaussian_noise((4, 4), seed=42)[0], many, rtol=0, atol=4e-6)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (15,), (16,), (17,), (2, 4, 13, 9)])
def test_shape_dtype_and_layout(shape: tuple[int, ...]) -> None:
    noise = gaussian_noise(shape, seed=0)
    assert noise.shape == shape
    assert noise.dtype == np.float32
    assert noise.flags.c_contiguous


def test_is_standard_normal() -> None:
    noise = gaussian_noise((1_000_000,), seed=7).astype(np.float64)
    assert abs(noise.mean()) < 4e-3  # four standard errors
    assert abs(noise.std() - 1) < 3e-3
    assert abs((noise**4).mean() - 3) < 0.04
    assert abs(np.corrcoef(noise[:-8], noise[8:])[0, 1]) < 4e-3  # the two halves of a block


def test_same_seed_same_noise_and_no_global_state() -> None:
    first = gaussian_noise((4, 4), seed=5)
    np.random.default_rng(0).normal()
    np.testing.assert_array_equal(gaussian_noise((4, 4), seed=5), first)
    assert not np.array_equal(gaussian_noise((4, 4), seed=6), first)


def test_negative_seed_counts_from_two_to_the_64() -> None:
    np.testing.assert_array_equal(
        gaussian_noise((20,), seed=-5), gaussian_noise((20,), seed=2**64 - 5)
    )


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_outside_torchs_range(seed: int) -> None:
    with pytest.raises(UsageError, match=str(seed)):
        gaussian_noise((4,), seed=seed)


def test_one_seed_draws_the_whole_batch() -> None:
    noise = draw_noise(NoiseStream(seeds=(3,)), (2, 4, 8, 8))[0]
    np.testing.assert_array_equal(noise, gaussian_noise((2, 4, 8, 8), seed=3))
    assert not np.array_equal(noise[0], noise[1])


def test_one_seed_an_image_draws_each_alone() -> None:
    noise = draw_noise(NoiseStream(seeds=(3, 4, 3)), (3, 4, 5, 3))[0]
    assert noise.shape == (3, 4, 5, 3)
    for image, seed in zip(noise, (3, 4, 3), strict=True):
        np.testing.assert_array_equal(image[None], gaussian_noise((1, 4, 5, 3), seed=seed))


@pytest.mark.parametrize(("batch", "seeds"), [(1, []), (0, []), (1, [1, 2]), (3, [1, 2])])
def test_other_numbers_of_seeds(batch: int, seeds: list[int]) -> None:
    with pytest.raises(UsageError, match=f"{len(seeds)} seeds for {batch} images"):
        draw_noise(NoiseStream(seeds=tuple(seeds)), (batch, 4, 2, 2))[0]
