"""What a benchmark found, as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import final

from triptych.parity.fingerprint import Fingerprint
from triptych.types import ComponentName, FormatName

SCHEMA_VERSION = 1
"""Of the JSON document; counts up when a field changes its meaning or goes away."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall time of calls after warm-up.

    Attributes:
        median_seconds: of all of them.
        smallest_seconds: of the fastest.
        largest_seconds: of the slowest.
        num_calls: how many were measured.
    """

    median_seconds: float
    smallest_seconds: float
    largest_seconds: float
    num_calls: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much was computed, and how much of the machine that used.

    Attributes:
        flops: operations of one call; None where they were not counted.
        gflop_per_second: those in the median time, in 10^9 a second.
        peak_share: that divided by the engine's own best matrix product of the same arithmetic; may
            be above 1. None where there is no such product.
    """

    flops: int | None
    gflop_per_second: float | None
    peak_share: float | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentBench:
    """One component on one engine, in a process of its own.

    Attributes:
        component: which one.
        precision: what it ran in, as far as the engine tells.
        batch: rows of its feed.
        open_seconds: to open it, once the engine is imported.
        call: of the engine.
        work: of a call.
        peak_bytes: private memory of the process at most; None where the system does not tell.
    """

    component: ComponentName
    precision: str
    batch: int
    open_seconds: float
    call: Timing
    work: Work
    peak_bytes: int | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerBench:
    """The sampler on one engine, in a process of its own, with guidance.

    Attributes:
        cold_start_seconds: from the start of the process to the latents after the first step.
        step: of the steps after warm-up.
        work: of a step, which is two rows through the U-Net.
        peak_bytes: private memory of the process at most; None where the system does not tell.
    """

    cold_start_seconds: float
    step: Timing
    work: Work
    peak_bytes: int | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeBench:
    """One engine.

    Attributes:
        runtime: its name.
        versions: of its packages.
        device: where it ran, in its own words.
        threads: how many it computed with, as it was told or in its own words.
        matmul_gflop_per_second: its best matrix product, by arithmetic.
        components: in the order they run in a picture's making.
        sampler: None where it did not run.
    """

    runtime: str
    versions: Mapping[str, str]
    device: str
    threads: str
    matmul_gflop_per_second: Mapping[str, float]
    components: tuple[ComponentBench, ...]
    sampler: SamplerBench | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """How fast a bundle is on a machine.

    Attributes:
        schema_version: see `SCHEMA_VERSION`.
        bundle: the folder.
        format: what its artifacts are.
        height_px: of the pictures.
        width_px: of the pictures.
        num_warmup: calls, or steps, before those that were measured.
        machine: where.
        runtimes: one for each engine that was asked for.
        notes: what was not measured, and why.
    """

    schema_version: int = SCHEMA_VERSION
    bundle: str
    format: FormatName
    height_px: int
    width_px: int
    num_warmup: int
    machine: Fingerprint
    runtimes: tuple[RuntimeBench, ...]
    notes: tuple[str, ...]


def make_timing(seconds: Sequence[float]) -> Timing:
    """What is said of several calls; at least one."""
    return Timing(
        median_seconds=median(seconds),
        smallest_seconds=min(seconds),
        largest_seconds=max(seconds),
        num_calls=len(seconds),
    )


def make_work(flops: int | None, timing: Timing, *, peak: float | None) -> Work:
    """The rate of a call, and its share of a peak in 10^9 operations a second."""
    rate = None if flops is None else flops / timing.median_seconds / 1e9
    share = None if rate is None or peak is None else rate / peak
    return Work(flops=flops, gflop_per_second=rate, peak_share=share)
