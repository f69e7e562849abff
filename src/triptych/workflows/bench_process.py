"""The process that measures one thing, so that its memory and its start are of that thing alone."""

import os
import sys
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, final

import msgspec

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import MissingDependencyError, TriptychError
from triptych.models.configs import read_json
from triptych.models.feeds import component_cases
from triptych.models.prompts import prompt_ids
from triptych.runtimes import make_runtime
from triptych.runtimes._matmul_peak import (
    Arithmetic,
    matmul_gflop_per_second,
    multiplied_in,
)
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.checked import open_session
from triptych.sampling.pipeline import denoise, prepare
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import Settings
from triptych.types import ComponentName, TensorMap

PROMPT = "a photo of an astronaut riding a horse on the moon"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """One thing to measure; crosses the process border as JSON.

    Attributes:
        what: a component, the sampler, or a product of matrices.
        bundle: its folder.
        variant: the weight variant, for a checkpoint.
        runtime: the engine.
        settings: what it is told.
        height_px: of the pictures.
        width_px: of the pictures.
        num_calls: calls, or steps, to measure.
        num_warmup: calls, or steps, before them.
        component: which one, for a component.
        arithmetic: of the matrices, for a product.
        started: when the process was started, in seconds since the epoch.
    """

    what: Literal["component", "sampler", "matmul"]
    bundle: str
    variant: str | None
    runtime: str
    settings: RuntimeSettings
    height_px: int
    width_px: int
    num_calls: int
    num_warmup: int
    component: ComponentName | None = None
    arithmetic: Arithmetic = "fp32"
    started: float = 0.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job gave; crosses the process border as JSON.

    Attributes:
        open_seconds: to open a component; of the sampler, from the start of the process to the
            latents after the first step.
        call_seconds: of each measured call or step, in order.
        batch: rows of a component's feed.
        precision: what a component ran in, as far as the engine tells.
        arithmetic: what its matrices were multiplied in; None where that cannot be compared.
        device: where it ran, in the engine's words.
        threads: how many it computed with, as the engine was told or in its words.
        matmul_gflop_per_second: of a product; None where the engine has none.
        error: why it failed; empty where it did not.
        exit_code: of that error.
    """

    open_seconds: float = 0.0
    call_seconds: tuple[float, ...] = ()
    batch: int = 1
    precision: str = ""
    arithmetic: Arithmetic | None = None
    device: str = ""
    threads: str = ""
    matmul_gflop_per_second: float | None = None
    error: str = ""
    exit_code: int = 0


def bench_feed(
    bundle: Bundle, component: ComponentName, *, height_px: int, width_px: int
) -> TensorMap:
    """What a component is fed: one sample, or as many as its graph was built for."""
    scale = bundle.config.vae_scale_factor
    batch = bundle.artifact(component).fixed_axes.get("batch", 1)
    cases = component_cases(
        component,
        bundle.config,
        input_ids=prompt_ids(bundle.folder, component),
        fixed_axes={"batch": batch, "height": height_px // scale, "width": width_px // scale},
    )
    return next(cases).feed


def measure(job: BenchJob) -> Outcome:
    """Do a job in this process.

    Raises:
        TriptychError: the bundle, the engine or the settings do not allow it.
    """
    runtime = make_runtime(job.runtime, job.settings)
    if job.what == "matmul":
        return _measure_product(runtime, job.arithmetic)
    bundle = open_bundle(Path(job.bundle), variant=job.variant)
    if job.component is None:
        return _measure_sampler(bundle, runtime, job)
    return _measure_component(bundle, runtime, job.component, job)


def _measure_product(runtime: Runtime, arithmetic: Arithmetic) -> Outcome:
    try:
        return Outcome(matmul_gflop_per_second=matmul_gflop_per_second(runtime, arithmetic))
    except MissingDependencyError:  # what writes a graph is not needed to run one
        return Outcome()


def _measure_component(
    bundle: Bundle, runtime: Runtime, component: ComponentName, job: BenchJob
) -> Outcome:
    feed = bench_feed(bundle, component, height_px=job.height_px, width_px=job.width_px)
    _import_engine(bundle, runtime, component)
    started = time.perf_counter()
    with open_session(runtime, bundle, component) as session:
        open_seconds = time.perf_counter() - started
        for _ in range(job.num_warmup + job.num_calls):
            session.run(feed)
        execution = session.execution
        return Outcome(
            open_seconds=open_seconds,
            call_seconds=tuple(session.call_seconds[job.num_warmup :]),
            batch=next(len(tensor) for tensor in feed.values() if tensor.ndim),
            precision=execution.precision,
            arithmetic=multiplied_in(execution),
            device=execution.device,
            threads=str(job.settings.num_threads or execution.details.get("threads", "")),
        )


def _import_engine(bundle: Bundle, runtime: Runtime, component: ComponentName) -> None:
    """Everything that opening imports, so that it is not counted as opening."""
    runtime.probe()
    checkpoint = bundle.artifact(component).checkpoint
    if checkpoint is not None:
        from triptych.models.modules import empty_module

        config = checkpoint.component_folder(component) / "config.json"
        empty_module(component, read_json(config))


def _measure_sampler(bundle: Bundle, runtime: Runtime, job: BenchJob) -> Outcome:
    """The first step ends the cold start, and is never among those that are measured."""
    num_before = max(job.num_warmup, 1)
    settings = Settings(
        prompts=Prompts(prompt=(PROMPT,)),
        num_inference_steps=num_before + job.num_calls,
        height_px=job.height_px,
        width_px=job.width_px,
    )
    cold_start_seconds = 0.0
    ends: list[float] = []
    for _ in denoise(bundle, runtime, prepare(bundle, runtime, settings)):
        cold_start_seconds = cold_start_seconds or time.time() - job.started
        ends.append(time.perf_counter())
    steps = [after - before for before, after in pairwise(ends)]
    return Outcome(open_seconds=cold_start_seconds, call_seconds=tuple(steps[num_before - 1 :]))


def _main() -> None:
    """Do the job of the first argument, and write its outcome to the file of the second."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    job = msgspec.json.decode(sys.argv[1], type=BenchJob, dec_hook=_decoded)
    try:
        outcome = measure(job)
    except TriptychError as error:
        outcome = Outcome(error=str(error), exit_code=error.exit_code)
    Path(sys.argv[2]).write_bytes(msgspec.json.encode(outcome))


def _decoded(kind: type, value: object) -> object:
    return kind(value)  # a Path


def _leave_with_parent() -> None:
    """Stdin ends when the parent does, however that came."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    _main()
