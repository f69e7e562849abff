"""triptych bisect."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from triptych.cli.console import print_json, progress_bars, say, stdout
from triptych.cli.options import (
    CacheOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    RuntimeOption,
    ThreadsOption,
    VariantOption,
    runtime_settings,
)
from triptych.types import ComponentName

if TYPE_CHECKING:
    from triptych.parity.bisect import BisectReport


def bisect(
    what: Annotated[
        Literal["components", "passes", "precision", "export"],
        typer.Argument(
            help="components: swap one network at a time. passes: of ONNX Runtime's optimiser. "
            "precision: what the engine computes in. export: how the file was made."
        ),
    ],
    bundle: Annotated[
        Path,
        typer.Argument(help="The bundle, or a folder with one for each format and --runtime."),
    ],
    *,
    reference: Annotated[
        Path, typer.Option("--reference", help="The checkpoint that it came from.")
    ],
    runtime: RuntimeOption = None,
    component: Annotated[
        ComponentName,
        typer.Option("--component", help="Whose error, for passes, precision and export."),
    ] = "unet",
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", min=1, help="Of every run.")
    ] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Of its noise.")] = 0,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    num_threads: ThreadsOption = None,
    reference_device: Annotated[
        str | None, typer.Option("--reference-device", help="cpu, cuda or mps.")
    ] = None,
    variant: VariantOption = None,
    json: JsonOption = False,
) -> None:
    """Say which component, pass, precision or export option carries how much of the error.

    Exit codes: 0 the candidate keeps its limits and nothing needs explaining, 1 it does not, 2 the
    engine cannot be bisected so, 3 the two cannot be compared, 4 an engine is missing.
    """
    from triptych.runtimes.base import RuntimeSettings
    from triptych.workflows.bisect import bisect_bundle
    from triptych.workflows.bisect_ground import BisectRequest
    from triptych.workflows.record import RunRequest

    request = BisectRequest(
        what=what,
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
        component=component,
        run=RunRequest(num_inference_steps=num_inference_steps, seed=seed),
        reference_settings=RuntimeSettings(device=reference_device),
        variant=variant,
        command=("triptych", *sys.argv[1:]),
    )
    with progress_bars() as bars:
        task = bars.add_task(f"bisecting {what}", total=None, stage="")
        found = bisect_bundle(request, report=lambda stage: bars.update(task, stage=stage))
        bars.update(task, total=1, completed=1, stage="done")
    if json:
        from triptych.parity.report_file import report_document

        print_json(report_document(found))
    else:
        _print_report(found)
    raise typer.Exit(0 if found.verdict in ("passed", "warned") else 1)


def _print_report(report: "BisectReport") -> None:
    """For each error the candidate's own, what carries it, and what follows."""
    from rich.markup import escape

    from triptych.cli.check import COLOURS
    from triptych.parity.bisect_lines import section_lines, whole_line

    say(f"{report.runtime}: {report.bundle} against {report.reference}")
    for section in report.sections:
        verdict = section.row.verdict
        reason = f"  {section.row.reason}" if section.row.reason else ""
        stdout().print(
            f"{escape(whole_line(section))}  [{COLOURS[verdict]}]{verdict.upper()}[/]"
            f"{escape(reason)}",
            soft_wrap=True,
        )
        for line in section_lines(report, section):
            say(f"  {line}")
        say(f"{section.subject}: {section.conclusion}")
