"""The noise of a run: PyTorch's CPU generator, in NumPy.

A published seed names a picture because everybody draws the first latents, and the noise that some
solvers add, with `torch.Generator("cpu").manual_seed(seed)`. The same seed gives the same noise
here, without torch. Scaling it to a noise level is the schedule's business, not this file's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from triptych.errors import UsageError
from triptych.types import Array

_BLOCK = 16
"""Values PyTorch fills together; a shorter tensor is drawn value by value."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseStream:
    """Where the generators of a run stand. A value: drawing gives the noise and the next stream.

    Attributes:
        seeds: of one generator for the whole batch, or of one a picture. What torch accepts,
            -2**63 to 2**64 - 1. A negative seed counts from 2**64. Only the low 32 bits reach the
            generator, so seeds that differ by 2**32 give the same noise.
        words_drawn: 32-bit words that each of them has given so far.
        spares: normal values left over by a draw of an odd number below 16, one a generator, which
            the next such draw begins with; empty where nothing is left.
        states: the generators' insides there, which follow from the rest and save drawing it all
            again; empty where they are not known.
    """

    seeds: tuple[int, ...]
    words_drawn: int = 0
    spares: tuple[float, ...] = ()
    states: tuple[Mapping[str, object], ...] = field(default=(), repr=False, compare=False)

    def record(self) -> dict[str, object]:
        """For run.json: enough to go on drawing."""
        return {
            "seeds": list(self.seeds),
            "words_drawn": self.words_drawn,
            "spares": list(self.spares),
        }


def draw_noise(stream: NoiseStream, shape: tuple[int, ...]) -> tuple[Array, NoiseStream]:
    """The next unit noise of a stream, as diffusers' `randn_tensor` draws it, and what follows.

    One generator draws the whole batch at once; one a picture draw each picture as if it were
    alone, so that a picture does not depend on its neighbours.

    Args:
        stream: where the generators stand.
        shape: axis lengths, the batch first.

    Returns:
        float32 noise, as `gaussian_noise` describes it, and the stream after it.

    Raises:
        UsageError: neither one seed nor one seed a picture, or a seed outside torch's range.

    Source:
        diffusers 0.39: diffusers/utils/torch_utils.py, randn_tensor, with one generator and with
        a list of generators. Same numbers: tests/reference/test_noise_against_torch.py.
    """
    if len(stream.seeds) == 1:
        shapes = [shape]
    elif stream.seeds and shape and len(stream.seeds) == shape[0]:
        shapes = [(1, *shape[1:])] * shape[0]
    else:
        raise UsageError(
            f"noise: got {len(stream.seeds)} seeds for {shape[0] if shape else 1} images, want 1 "
            "seed for the whole batch or one an image. Give as many seeds as images."
        )
    generators = _generators(stream)
    spares = stream.spares or (None,) * len(stream.seeds)
    drawn = [
        _drawn(part, generator, spare=spare)
        for part, generator, spare in zip(shapes, generators, spares, strict=True)
    ]
    noise = np.concatenate([values for values, _, _ in drawn]) if shape else drawn[0][0]
    after = replace(
        stream,
        words_drawn=stream.words_drawn + drawn[0][1],
        spares=tuple(spare for _, _, spare in drawn if spare is not None),
        states=tuple(generator.get_state(legacy=False) for generator in generators),
    )
    return noise, after


def _generators(stream: NoiseStream) -> list[np.random.RandomState]:
    """Where they stand.

    Raises:
        UsageError: a seed is outside torch's range.
    """
    generators = []
    for seed in stream.seeds:
        if not -(2**63) <= seed < 2**64:
            raise UsageError(f"noise seed: got {seed}, want -2**63 to 2**64 - 1, as torch accepts.")
        # The legacy generator on purpose: it is seeded as torch's MT19937 is, and NumPy guarantees
        # its stream for ever. A full-range uint32 is one raw draw.
        generators.append(np.random.RandomState(seed & 0xFFFFFFFF))
    if stream.states:
        for generator, state in zip(generators, stream.states, strict=True):
            generator.set_state(dict(state))
        return generators
    for generator in generators:
        _words(generator, stream.words_drawn)
    return generators


def gaussian_noise(shape: tuple[int, ...], *, seed: int) -> Array:
    """Standard normal float32 values, as `torch.randn` draws them on the CPU.

    Equal to `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` bit for bit
    below 16 values, and from 16 on up to the rounding of log, cos and sin: at most 4.8e-7 apart
    where torch uses AVX2 or AVX-512. Torch's portable code rounds the angle otherwise and is up to
    2.4e-6 away, from this and from torch's own AVX2 code alike.

    Args:
        shape: axis lengths; () is one value.
        seed: as in `NoiseStream`.

    Raises:
        UsageError: the seed is outside torch's range.

    Source:
        PyTorch 2.13: aten/src/ATen/native/cpu/DistributionTemplates.h, normal_kernel,
        normal_fill and normal_fill_AVX2; aten/src/ATen/core/DistributionsHelper.h,
        normal_distribution; Box and Muller 1958, doi:10.1214/aoms/1177706645.
        Same numbers as torch: tests/reference/test_noise_against_torch.py.
    """
    return draw_noise(NoiseStream(seeds=(seed,)), shape)[0]


def _drawn(
    shape: tuple[int, ...], generator: np.random.RandomState, *, spare: float | None
) -> tuple[Array, int, float | None]:
    """Values of one generator, how many words they took, and what is left over."""
    count = math.prod(shape)
    if count >= _BLOCK:
        values = _draw_many(generator, count)
        return values.reshape(shape), count + (_BLOCK if count % _BLOCK else 0), spare
    pool = np.array([] if spare is None else [spare])
    pairs = (max(count - len(pool), 0) + 1) // 2
    pool = np.concatenate([pool, _draw_pairs(generator, pairs)])
    values = pool[:count].astype(np.float32)
    return values.reshape(shape), pairs * 4, float(pool[count]) if len(pool) > count else None


def _draw_pairs(stream: np.random.RandomState, pairs: int) -> Array:
    """Pairs of float64 values from 53-bit uniforms, angle first, then radius."""
    words = _words(stream, pairs * 4).astype(np.uint64).reshape(pairs, 2, 2)
    uniforms = ((words[..., 0] << 32 | words[..., 1]) & (2**53 - 1)) * 2.0**-53
    theta = 2 * np.pi * uniforms[:, 0]
    radius = np.sqrt(-2 * np.log1p(-uniforms[:, 1]))
    values = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    return values.reshape(-1)


def _draw_many(stream: np.random.RandomState, count: int) -> Array:
    """16 values or more: blocks of 16; a last, incomplete block is drawn anew over the last 16."""
    whole = count - count % _BLOCK
    if whole == count:
        return _normal_blocks(_words(stream, count))
    words = _words(stream, count + _BLOCK)  # the words of the incomplete block are thrown away
    return np.concatenate(
        [
            _normal_blocks(words[:whole])[: count - _BLOCK],
            _normal_blocks(words[count:]),
        ]
    )


def _normal_blocks(words: Array) -> Array:
    """In every block of 16, the first 8 give radii and cosines, the last 8 angles and sines."""
    uniforms = (words & 0xFFFFFF).astype(np.float32).reshape(-1, 2, 8) * np.float32(2**-24)
    # The angle is rounded to float32 because torch's is; the rest is rounded once, at the end.
    theta = (np.float32(2 * np.pi) * uniforms[:, 1]).astype(np.float64)
    radius = np.sqrt(-2 * np.log1p(-uniforms[:, 0].astype(np.float64)))
    values = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1)
    return values.astype(np.float32).reshape(-1)


def _words(stream: np.random.RandomState, count: int) -> Array:
    """The next raw 32-bit words of the generator."""
    return stream.randint(0, 2**32, size=count, dtype=np.uint32)
