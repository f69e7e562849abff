"""triptych demo."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.check import print_report
from triptych.cli.console import progress_bars, stdout


def demo(
    *,
    output: Annotated[
        Path, typer.Option("--output", help="A folder to make; an earlier demo's is replaced.")
    ] = Path("demo"),
) -> None:
    """From a checkpoint to checked pictures, end to end, on a tiny random model.

    Makes a tiny SDXL checkpoint, exports it to ONNX, samples 8 steps on PyTorch and on ONNX
    Runtime from the same noise, draws a contact sheet, and checks the bundle against PyTorch.
    """
    from triptych.workflows.demo import run_demo

    with progress_bars() as bars:
        task = bars.add_task("demo", total=1.0, stage="")
        result = run_demo(
            output,
            report=lambda stage, fraction: bars.update(task, completed=fraction, stage=stage),
        )
    print_report(result.report)
    console = stdout()
    console.print(f"pictures:  {result.contact_sheet}  (rows: runtimes, columns: steps)")
    console.print(f"bundle:    {result.bundle}")
    console.print(
        "The weights are random, so the pictures are texture; what counts is that the rows"
    )
    console.print("are the same. With your own SDXL checkpoint:")
    console.print("  triptych export CHECKPOINT OUT --to onnx")
    console.print("  triptych sample OUT/onnx --prompt 'a cat' --save-steps 1,8,32,50 --output cat")
    console.print("  triptych check OUT/onnx --reference CHECKPOINT")
    if result.report.verdict != "passed":
        raise typer.Exit(1)
