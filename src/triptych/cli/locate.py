"""triptych locate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import note, number_text, print_json, progress_bars, say
from triptych.cli.options import (
    DeviceOption,
    JsonOption,
    PrecisionOption,
    PreviewDecoderOption,
    RuntimeOption,
    ThreadsOption,
    VariantOption,
    runtime_settings,
)
from triptych.types import ComponentName

if TYPE_CHECKING:
    from triptych.parity.locate import Finding, LocateReport


def locate(
    bundle: Annotated[Path, typer.Argument(help="The bundle to look into.")],
    *,
    reference: Annotated[Path, typer.Option("--reference", help="The checkpoint it came from.")],
    component: Annotated[
        ComponentName, typer.Option("--component", help="The network to look into.")
    ] = "unet",
    timestep: Annotated[
        float | None,
        typer.Option("--timestep", help="Of the U-Net's feed. Default: 999, the schedule's first."),
    ] = None,
    taps_per_run: Annotated[
        int,
        typer.Option(
            "--taps-per-run",
            min=1,
            help="Values to look at in one run. Fewer keep memory low and the engine's fusions "
            "whole; more are faster. coreml-reference shows all of them in one.",
        ),
    ] = 20,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    reference_device: Annotated[
        str, typer.Option("--reference-device", help="cpu, cuda or mps, for PyTorch.")
    ] = "cpu",
    num_threads: ThreadsOption = None,
    preview_decoder: PreviewDecoderOption = None,
    variant: VariantOption = None,
    json: JsonOption = False,
) -> None:
    """Find the first operator whose inputs agree with PyTorch and whose output does not.

    For onnxruntime, openvino and coreml-reference. Exit codes: 0 nothing found, 1 an operator is
    wrong or the output is, 3 the two cannot be compared, 4 an engine is missing.
    """
    from triptych.workflows.locate import LocateRequest
    from triptych.workflows.locate import locate as search

    request = LocateRequest(
        bundle=bundle,
        reference=reference,
        component=component,
        runtime=runtime,
        runtime_settings=runtime_settings(
            device=device, compute_units=None, precision=precision, num_threads=num_threads
        ),
        reference_device=reference_device,
        timestep=timestep,
        taps_per_run=taps_per_run,
        variant=variant,
        preview_decoder=preview_decoder,
    )
    with progress_bars() as bars:
        task = bars.add_task("locating", total=None, stage="")
        report = search(request, report=lambda stage: bars.update(task, stage=stage))
        bars.update(task, total=1, completed=1, stage="done")
    if json:
        print_json(report.to_json())
    else:
        print_report(report)
    if report.verdict != "passed":
        raise typer.Exit(1)


def print_report(report: "LocateReport") -> None:
    """Print one line for each finding, then what was looked at."""
    for finding in report.findings:
        say(_finding_text(report, finding))
    for problem in report.problems:
        say(f"{report.component}  FAIL: {problem}")
    if report.num_unexamined:
        note(f"{report.num_unexamined} further operators are suspect; look again once these are.")
    execution = report.execution
    say(
        f"{report.verdict}: {report.component}, {report.case}, on {execution.runtime} "
        f"{execution.version}, {execution.precision}; {report.num_sites} values compared among "
        f"{report.num_operators} operators; output {number_text(report.output_error)}, at most "
        f"{number_text(report.limit)}; tapping changed it by {number_text(report.tapping)}"
    )


def _finding_text(report: "LocateReport", finding: "Finding") -> str:
    site = finding.site
    place = f"{site.module} before {site.before}" if site.before else site.module
    arrived = 0.0 if finding.arrived is None else finding.arrived.rel_l2
    return (
        f"{report.component} {place or '(its own operators)'}  "
        f"{finding.operator} ({finding.operator_type})  "
        f"input {number_text(arrived)}  output {number_text(finding.output.rel_l2)}  "
        f"local {number_text(finding.local.rel_l2)}  "
        f"propagated {number_text(finding.propagated)}  FAIL: {finding.reason}"
    )
