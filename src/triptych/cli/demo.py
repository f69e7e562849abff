"""triptych demo."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.check import print_report
from triptych.cli.console import progress_bars, say


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
    say(f"pictures:  {result.contact_sheet}  (rows: runtimes, columns: steps)")
    say(f"bundle:    {result.bundle}")
    say("The weights are random, so the pictures are texture; what counts is that the rows")
    say("are the same. With your own SDXL checkpoint:")
    say("  triptych export CHECKPOINT OUT --to onnx")
    say("  triptych sample OUT/onnx --prompt 'a cat' --save-steps 1,8,32,50 --output cat")
    say("  triptych check OUT/onnx --reference CHECKPOINT")
    if result.report.verdict != "passed":
        raise typer.Exit(1)
