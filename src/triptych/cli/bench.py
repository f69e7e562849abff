"""triptych bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import note, print_json, progress_bars, say, size_text, stdout
from triptych.cli.options import (
    CacheOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    LowMemoryOption,
    MapWeightsOption,
    PrecisionOption,
    ThreadsOption,
    VariantOption,
    runtime_settings,
)
from triptych.cli.sample_options import HeightOption, WidthOption
from triptych.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from triptych.workflows.bench_report import BenchReport, RuntimeBench, Timing, Work

NOT_KNOWN = "-"
"""In a table, for what was not measured."""


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint.")],
    *,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME",
            help="Engine. May be repeated. Default: the one that reads the bundle's format.",
        ),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            "--component",
            metavar="NAME",
            help="Only this one. May be repeated. Steps are measured with the unet.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="PX", help="Of both edges: --height-px and --width-px."),
    ] = None,
    height_px: HeightOption = None,
    width_px: WidthOption = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps, and calls of each component, to measure.")
    ] = 3,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, help="Steps, and calls, before those.")
    ] = 1,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    num_threads: ThreadsOption = None,
    map_weights: MapWeightsOption = True,
    low_memory: LowMemoryOption = False,
    variant: VariantOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how fast a bundle is here: components, steps, cold start, memory.

    Everything runs in a process of its own. Exit codes: 0 it was measured, 1 a component gave NaN
    or infinity, 2 usage, 3 the bundle is broken, 4 an engine is missing or could not run.
    """
    from triptych.parity.report_file import report_document
    from triptych.workflows.bench import bench_bundle
    from triptych.workflows.bench_plan import BenchRequest

    if size is not None and (height_px, width_px) != (None, None):
        raise UsageError("--size: got one beside --height-px or --width-px, want one of them.")
    request = BenchRequest(
        bundle=bundle,
        runtimes=tuple(runtime or ()),
        runtime_settings=runtime_settings(
            device=device,
            compute_units=compute_units,
            precision=precision,
            num_threads=num_threads,
            cache_dir=cache_dir,
            map_weights=map_weights,
            low_memory=low_memory,
        ),
        components=tuple(component or ()),
        height_px=size or height_px,
        width_px=size or width_px,
        num_calls=steps,
        num_warmup=warmup,
        variant=variant,
    )
    with progress_bars() as bars:
        task = bars.add_task("measuring", total=None, stage="")
        found = bench_bundle(request, report=lambda stage: bars.update(task, stage=stage))
        bars.update(task, total=1, completed=1, stage="done")
    if json:
        print_json(report_document(found))
    else:
        _print_report(found)


def _print_report(report: "BenchReport") -> None:
    say(f"{report.bundle}: {report.format}, {report.width_px} x {report.height_px} px")
    say(
        f"{report.machine.processor or report.machine.system}, {report.machine.num_cpus} processors"
    )
    for engine in report.runtimes:
        versions = ", ".join(f"{name} {version}" for name, version in engine.versions.items())
        threads = f", threads: {engine.threads}" if engine.threads else ""
        say(f"\n{engine.runtime} ({versions}) on {engine.device}{threads}")
        stdout().print(_table(engine))
        for arithmetic, rate in engine.matmul_gflop_per_second.items():
            say(f"matrix products in {arithmetic}: {rate:.0f} GFLOP/s at best")
        if engine.sampler is not None:
            say(f"cold start: {_seconds_text(engine.sampler.cold_start_seconds)} to first latents")
    for remark in report.notes:
        note(f"note: {remark}")


def _table(engine: "RuntimeBench") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("precision", "batch", "open", "call", "fastest", "slowest", "GFLOP/s",
                    "of peak", "peak memory"):  # fmt: skip
        table.add_column(heading, justify="right")
    for found in engine.components:
        table.add_row(
            found.component,
            found.precision,
            str(found.batch),
            _seconds_text(found.open_seconds),
            *_call_cells(found.call, found.work, found.peak_bytes),
        )
    if engine.sampler is not None:
        sampler = engine.sampler
        cells = _call_cells(sampler.step, sampler.work, sampler.peak_bytes)
        table.add_row("step", "", "", "", *cells)
    return table


def _call_cells(call: "Timing", work: "Work", peak_bytes: int | None) -> tuple[str, ...]:
    rate, share = work.gflop_per_second, work.peak_share
    return (
        *map(_seconds_text, (call.median_seconds, call.smallest_seconds, call.largest_seconds)),
        NOT_KNOWN if rate is None else f"{rate:.1f}",
        NOT_KNOWN if share is None else f"{share:.0%}",
        NOT_KNOWN if peak_bytes is None else size_text(peak_bytes),
    )


def _seconds_text(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
