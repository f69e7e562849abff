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
    """From a checkpoint to checked pictures, end to end, on the small trained model inside.

    Exports it to ONNX, OpenVINO and Core ML, draws one prompt in 32 steps on PyTorch and on an
    engine for each format from the same noise, lays pictures of five steps beside each other, and
    checks every bundle against PyTorch. Core ML programs are interpreted, so that no Mac is needed.
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
    say(f"report:    {result.report_page}")
    say(f"bundles:   {', '.join(str(bundle) for bundle in result.bundles.values())}")
    say("What else the model can draw, and how well each bundle draws it:")
    say(f"  triptych sample {result.bundles['onnx']} --output ring \\")
    say("    --prompt 'a large yellow ring at the right on a purple background'")
    say(f"  triptych quality {result.bundles['onnx']} --prompts 20")
    say("With your own SDXL checkpoint:")
    say("  triptych export CHECKPOINT OUT --to openvino")
    say("  triptych sample OUT/openvino --prompt 'a cat' --save-steps 1,8,32,50 --output cat")
    say("  triptych check OUT/openvino --reference CHECKPOINT")
    if result.report.verdict not in ("passed", "warned"):
        raise typer.Exit(1)
