"""triptych quality."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import number_text, print_json, progress_bars, say, size_text, stdout
from triptych.cli.options import (
    CacheOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    LowMemoryOption,
    MapWeightsOption,
    PrecisionOption,
    ThreadsOption,
    runtime_settings,
)

if TYPE_CHECKING:
    from rich.table import Table

    from triptych.workflows.quality import QualityReport


def quality(
    bundles: Annotated[
        list[Path],
        typer.Argument(help="Bundles of the demo model, or of another that draws such scenes."),
    ],
    *,
    prompts: Annotated[
        int, typer.Option("--prompts", min=1, metavar="N", help="How many held-out prompts.")
    ] = 200,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME[:DEVICE]",
            help="Engine, for the bundles that it reads. May be repeated. Default: for each bundle "
            "the one that reads its format.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The checkpoint: how far every picture is from its."),
    ] = None,
    num_inference_steps: Annotated[int, typer.Option("--num-inference-steps", min=1)] = 20,
    guidance_scale: Annotated[float, typer.Option("--guidance-scale")] = 5.0,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    num_threads: ThreadsOption = None,
    map_weights: MapWeightsOption = True,
    low_memory: LowMemoryOption = False,
    json: JsonOption = False,
) -> None:
    """Draw prompts that were never trained on, and read from the pictures what they show.

    Says for each bundle in what share of its pictures shape, colour, size, place and background are
    as the prompt said, beside its size and how far its pictures are from the reference's.
    """
    from triptych.parity.report_file import report_document
    from triptych.workflows.quality import QualityRequest, measure_quality

    request = QualityRequest(
        bundles=tuple(bundles),
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
        reference=reference,
        num_prompts=prompts,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    )
    with progress_bars() as bars:
        task = bars.add_task("drawing", total=1.0, stage="")
        found = measure_quality(
            request,
            report=lambda stage, fraction: bars.update(task, completed=fraction, stage=stage),
        )
    if json:
        print_json(report_document(found))
        return
    say(
        f"{len(found.prompts)} prompts, {found.num_inference_steps} steps, guidance "
        f"{found.guidance_scale:g}: shares of pictures that show what was asked for"
    )
    stdout().print(_table(found))


def _table(report: "QualityReport") -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("bundle", "runtime", "precision"):
        table.add_column(heading)
    for heading in ("on disk", "shape", "colour", "size", "place", "background", "all", "PSNR"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        shares = row.adherence
        table.add_row(
            row.path.name,
            row.runtime,
            row.precision,
            size_text(row.size_bytes),
            *(
                f"{share:.1%}"
                for share in (
                    shares.shape,
                    shares.color,
                    shares.size,
                    shares.place,
                    shares.background,
                    shares.whole,
                )
            ),
            "-" if row.psnr_db is None else f"{number_text(row.psnr_db, '.1f')} dB",
        )
    return table
