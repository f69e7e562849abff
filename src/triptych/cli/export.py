"""triptych export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, cast

import typer

from triptych.cli.console import note, print_json, progress_bars, say, size_text
from triptych.cli.options import JsonOption, VariantOption
from triptych.types import ComponentName, FormatName

if TYPE_CHECKING:
    from rich.progress import TaskID

ExportPrecision: TypeAlias = Literal["fp32", "fp16", "int8"]


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint in diffusers layout.")],
    output: Annotated[Path, typer.Argument(help="Gets one folder for each format.")],
    *,
    to: Annotated[
        list[str], typer.Option("--to", metavar="FORMAT", help="onnx, openvino. May be repeated.")
    ],
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="NAME", help="Only this one. May be repeated."),
    ] = None,
    precision: Annotated[
        ExportPrecision,
        typer.Option(
            "--precision",
            help="Of weights and, in ONNX, of arithmetic. int8 is for OpenVINO, of weights alone. "
            "A VAE with force_upcast stays fp32.",
        ),
    ] = "fp32",
    variant: VariantOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing bundle, as a whole.")
    ] = False,
    num_jobs: Annotated[
        int, typer.Option("--num-jobs", min=1, help="Components exported at once.")
    ] = 2,
    json: JsonOption = False,
) -> None:
    """Export a checkpoint to bundles that runtimes open.

    Every component is run against PyTorch before the bundle appears. Exit code 1 when one
    disagrees; then nothing is written and nothing that was there is touched.
    """
    from triptych.workflows.export import ExportRequest, export_bundles
    from triptych.workflows.inspect import inspect_path

    request = ExportRequest(
        checkpoint=checkpoint,
        output=output,
        formats=cast("list[FormatName]", to),
        components=cast("list[ComponentName]", component or []),
        precision=precision,
        variant=variant,
        overwrite=overwrite,
        num_jobs=num_jobs,
    )
    with progress_bars() as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def progress(
            *, to: FormatName, component: ComponentName, stage: str, fraction: float
        ) -> None:
            key = (to, component)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{to} {component}", total=1.0, stage=stage)
            bars.update(tasks[key], completed=fraction, stage=stage)

        bundles = export_bundles(request, progress=progress)
    summaries = [inspect_path(folder) for folder in bundles.values()]
    if json:
        print_json([summary.to_json() for summary in summaries])
        return
    for summary in summaries:
        total = sum(part.size_bytes for part in summary.components)
        worst = max((part.verified or 0.0 for part in summary.components), default=0.0)
        say(
            f"{summary.path}: {len(summary.components)} components, {size_text(total)}, "
            f"at most {worst:.1e} relative L2 from PyTorch"
        )
    note(f"next: triptych sample {next(iter(bundles.values()))} --prompt 'a cat' --output pictures")
