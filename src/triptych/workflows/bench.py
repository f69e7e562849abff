"""How fast a bundle is on this machine: every component, a step, and the start of a run."""

from collections.abc import Mapping
from dataclasses import replace

from triptych.parity.fingerprint import take_fingerprint
from triptych.parity.recording import StageReporter
from triptych.runtimes.base import Probe, Runtime
from triptych.types import ComponentName
from triptych.workflows.bench_plan import BenchPlan, BenchRequest, plan_bench
from triptych.workflows.bench_report import (
    BenchReport,
    ComponentBench,
    RuntimeBench,
    SamplerBench,
    make_timing,
    make_work,
)
from triptych.workflows.bench_worker import Measured, run_job

_GUIDED_ROWS = 2
"""Rows of the U-Net's batch in a step of one picture: with the prompt, and without it."""


def bench_bundle(request: BenchRequest, *, report: StageReporter) -> BenchReport:
    """Measure a bundle, each component and the sampler in a process of its own.

    Args:
        request: what to measure.
        report: told what is being measured.

    Raises:
        UsageError: settings that cannot be, or no such engine for this format.
        BundleError: the bundle is incomplete or corrupt.
        CheckFailedError: a component gave NaN or infinity.
        BackendError: an engine or device is missing, or could not run.
    """
    report("counting operations")
    plan = plan_bench(request)
    found = [_bench_runtime(plan, runtime, probe, report=report) for runtime, probe in plan.engines]
    return BenchReport(
        bundle=str(plan.bundle.folder),
        format=plan.bundle.format,
        height_px=plan.size_px[0],
        width_px=plan.size_px[1],
        num_warmup=request.num_warmup,
        machine=take_fingerprint(),
        runtimes=tuple(found),
        notes=plan.notes,
    )


def _bench_runtime(
    plan: BenchPlan, runtime: Runtime, probe: Probe, *, report: StageReporter
) -> RuntimeBench:
    job = plan.sampler_job(runtime)
    measured: dict[ComponentName, Measured] = {}
    for name in plan.components:
        report(f"{runtime.name}: {name}")
        measured[name] = run_job(replace(job, what="component", component=name))
    outcomes = [each.outcome for each in measured.values()]
    peaks: dict[str, float] = {}
    for arithmetic in sorted({one.arithmetic for one in outcomes if one.arithmetic is not None}):
        report(f"{runtime.name}: products of {arithmetic} matrices")
        rate = run_job(replace(job, what="matmul", arithmetic=arithmetic)).outcome
        if rate.matmul_gflop_per_second is not None:
            peaks[arithmetic] = rate.matmul_gflop_per_second
    sampler = None
    if plan.has_sampler:
        report(f"{runtime.name}: steps")
        sampler = _sampler_bench(plan, run_job(job), unet=measured["unet"], peaks=peaks)
    return RuntimeBench(
        runtime=runtime.name,
        versions=probe.versions,
        device=outcomes[0].device,
        threads=outcomes[0].threads,
        matmul_gflop_per_second=peaks,
        components=tuple(
            _component_bench(name, each, flops=plan.flops.get(name), peaks=peaks)
            for name, each in measured.items()
        ),
        sampler=sampler,
    )


def _component_bench(
    component: ComponentName, measured: Measured, *, flops: int | None, peaks: Mapping[str, float]
) -> ComponentBench:
    outcome = measured.outcome
    call = make_timing(outcome.call_seconds)
    return ComponentBench(
        component=component,
        precision=outcome.precision,
        batch=outcome.batch,
        open_seconds=outcome.open_seconds,
        call=call,
        work=make_work(flops, call, peak=peaks.get(outcome.arithmetic or "")),
        peak_bytes=measured.peak_bytes,
    )


def _sampler_bench(
    plan: BenchPlan, measured: Measured, *, unet: Measured, peaks: Mapping[str, float]
) -> SamplerBench:
    outcome = measured.outcome
    step = make_timing(outcome.call_seconds)
    counted = plan.flops.get("unet")
    flops = None if counted is None else counted // unet.outcome.batch * _GUIDED_ROWS
    return SamplerBench(
        cold_start_seconds=outcome.open_seconds,
        step=step,
        work=make_work(flops, step, peak=peaks.get(unet.outcome.arithmetic or "")),
        peak_bytes=measured.peak_bytes,
    )
