"""Whether two errors are the same error: by where they point, and by how large each case's is."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from triptych.parity.bisect import Likeness, LikenessKind
from triptych.parity.component_trial import MeasuredComponent
from triptych.parity.metrics import cosine
from triptych.types import Array

ALIKE_COSINE = 0.9
"""Cosine of two errors from which they are one: roundings of one size, at other places, have 0."""

ALIKE_SIZES = 0.7
"""Closeness of two errors' sizes from which they may be of one kind. Measured on the tiny
checkpoint's U-Net: fp16 with the sinusoid in fp16 is 0.37 from fp16 without, fp32 and int8 0.1 and
less from either; made twice, by two exporters, each is 1.00 from itself."""


def find_likeness(actual: MeasuredComponent, variation: MeasuredComponent) -> Likeness:
    """How much a variation's error is that of the component that is to be explained."""
    alike = _error_cosine(actual.errors, variation.errors)
    near = closeness(actual.trial.distances, variation.trial.distances)
    return Likeness(
        name=variation.trial.name,
        error=variation.trial.error,
        error_cosine=alike,
        closeness=near,
        kind=_kind(alike, near),
    )


def _kind(error_cosine: float | None, near: float) -> LikenessKind:
    if not near >= ALIKE_SIZES:
        return "other"
    return "same" if error_cosine is None or error_cosine >= ALIKE_COSINE else "size"


def closeness(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """1 - ‖a - b‖ / max(‖a‖, ‖b‖) over the cases that both have; 0 where there is none."""
    shared = [name for name in first if name in second]
    one = np.array([first[name] for name in shared], np.float64)
    other = np.array([second[name] for name in shared], np.float64)
    if not shared or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0
    larger = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return 1.0 if larger == 0 else 1 - float(np.linalg.norm(one - other)) / larger


def most_alike_first(likenesses: Iterable[Likeness]) -> tuple[Likeness, ...]:
    """First those that are as large, and of them the one whose error points the same way."""
    return tuple(
        sorted(
            likenesses,
            key=lambda one: (one.kind == "other", -(one.error_cosine or 0.0), -one.closeness),
        )
    )


def _error_cosine(first: Mapping[str, Array], second: Mapping[str, Array]) -> float | None:
    shared = [name for name in first if name in second]
    if not shared:
        return None
    found = cosine(
        *(np.concatenate([np.ravel(of[name]) for name in shared]) for of in (first, second))
    )
    return None if math.isnan(found) else found
