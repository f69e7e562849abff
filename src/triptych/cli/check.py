"""triptych check."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import note, number_text, print_json, progress_bars, stdout
from triptych.cli.options import (
    CacheOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    PreviewDecoderOption,
    RuntimeOption,
    ThreadsOption,
    VariantOption,
    runtime_settings,
)
from triptych.errors import BackendError

if TYPE_CHECKING:
    from rich.table import Table

    from triptych.parity.report import ParityReport
    from triptych.runtimes.base import Execution

_COLOURS = {"passed": "green", "failed": "bold red", "not_run": "yellow"}


def check(
    bundle: Annotated[Path, typer.Argument(help="The bundle to check.")],
    *,
    reference: Annotated[Path, typer.Option("--reference", help="The checkpoint it came from.")],
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", min=1, help="Of the trajectory.")
    ] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of the trajectory's noise.")] = 0,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    reference_device: Annotated[
        str, typer.Option("--reference-device", help="cpu, cuda or mps, for PyTorch.")
    ] = "cpu",
    num_threads: ThreadsOption = None,
    preview_decoder: PreviewDecoderOption = None,
    variant: VariantOption = None,
    json: JsonOption = False,
) -> None:
    """Check a bundle against the checkpoint it came from, component by component, step by step.

    Exit codes: 0 everything passed, 1 a check failed or did not run, 3 the two cannot be
    compared, 4 an engine is missing.
    """
    from triptych.workflows.check import CheckRequest, check_bundle

    request = CheckRequest(
        bundle=bundle,
        reference=reference,
        runtime=runtime,
        runtime_settings=runtime_settings(
            device=device,
            compute_units=compute_units,
            precision=precision,
            num_threads=num_threads,
            cache_dir=cache_dir,
        ),
        reference_device=reference_device,
        num_inference_steps=num_inference_steps,
        seed=seed,
        variant=variant,
        preview_decoder=preview_decoder,
    )
    with progress_bars() as bars:
        task = bars.add_task("checking", total=None, stage="")
        report = check_bundle(request, report=lambda stage: bars.update(task, stage=stage))
        bars.update(task, total=1, completed=1, stage="done")
    if json:
        print_json(report.to_json())
    else:
        print_report(report)
    if report.unavailable:
        note(report.unavailable)
        raise typer.Exit(BackendError.exit_code)
    if report.verdict != "passed":
        raise typer.Exit(1)


def print_report(report: "ParityReport") -> None:
    """Print the worst row of each stage, what ran, and the verdict."""
    console = stdout()
    console.print(parity_table(report))
    for line in dict.fromkeys(_execution_text(found) for found in report.candidates.values()):
        console.print(f"ran on {line}", markup=False)
    passed = sum(row.verdict == "passed" for row in report.rows)
    colour = _COLOURS[report.verdict]
    console.print(f"[{colour}]{report.verdict}[/]: {passed} of {len(report.rows)} comparisons")


def _execution_text(execution: "Execution") -> str:
    certified = execution.details.get("certifies")
    remark = f"; certifies {certified}" if certified else ""
    return (
        f"{execution.runtime} {execution.version}, {execution.device}, "
        f"{execution.precision}{remark}"
    )


def parity_table(report: "ParityReport") -> "Table":
    """The worst row of each stage and component; precision and contract where they failed."""
    from rich.table import Table

    from triptych.parity.report import worst_rows

    table = Table(title="Parity with PyTorch: the worst of each", title_justify="left")
    for heading in ("stage", "component", "worst case", "class"):
        table.add_column(heading)
    for heading in ("rel. L2", "limit", "PSNR dB"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in worst_rows(report):
        if row.verdict == "passed" and row.comparison is None:
            continue
        found = row.comparison
        step = f"step {row.step}, " if row.step is not None else ""
        table.add_row(
            row.stage.replace("_", " "),
            row.component,
            f"{step}{row.case}" if found else row.reason or row.case,
            row.precision,
            "-" if found is None else number_text(found.rel_l2),
            number_text(row.limit),
            "-" if found is None else number_text(found.psnr_db, ".1f"),
            f"[{_COLOURS[row.verdict]}]{row.verdict}[/]",
        )
    return table
