"""triptych export."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, cast

import typer

from triptych.cli.compose_options import (
    ConfigOption,
    DownloadOption,
    LoraOption,
    TextualInversionOption,
    UnetOption,
    VaeOption,
    parse_inversions,
    parse_loras,
)
from triptych.cli.console import note, print_json, progress_bars, say, size_text
from triptych.cli.inspect import parity_lines
from triptych.cli.options import JsonOption, PreviewDecoderOption, VariantOption
from triptych.errors import TriptychError
from triptych.types import (
    ComponentName,
    CoreMlAttention,
    DeploymentTarget,
    FormatName,
    PaletteBits,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

    from triptych.workflows.export_estimate import ExportEstimate
    from triptych.workflows.inspect import Summary

ExportPrecision: TypeAlias = Literal[
    "fp32", "fp16", "bf16", "int8", "int4", "int8-dynamic", "hybrid"
]

_WORTH_TELLING = 1e9
"""Bytes of bundles from which on a user is told beforehand what an export takes."""


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint in diffusers layout, a single file in SDXL's original one, or a "
            "model's id on the hub."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Gets one folder for each format.")],
    *,
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="FORMAT", help="onnx, openvino, coreml. May be repeated."),
    ],
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="NAME", help="Only this one. May be repeated."),
    ] = None,
    precision: Annotated[
        ExportPrecision,
        typer.Option(
            "--precision",
            help="Of weights and, where that is possible, of arithmetic: triptych precisions says "
            "what each is in each format. A VAE with force_upcast stays fp32.",
        ),
    ] = "fp32",
    height_px: Annotated[
        int | None,
        typer.Option("--height-px", help="Core ML: of the only pictures that it will make."),
    ] = None,
    width_px: Annotated[int | None, typer.Option("--width-px", help="As --height-px.")] = None,
    coreml_attention: Annotated[
        CoreMlAttention,
        typer.Option(
            "--coreml-attention",
            help="original for CPU and GPU, split-einsum for the Neural Engine.",
        ),
    ] = "original",
    coreml_batch: Annotated[
        int,
        typer.Option(
            "--coreml-batch",
            min=1,
            max=2,
            help="Rows of the U-Net: 2 for both halves of guidance, 1 for one at a time.",
        ),
    ] = 2,
    coreml_chunks: Annotated[
        int,
        typer.Option("--coreml-chunks", min=1, max=2, help="Packages to cut the U-Net into."),
    ] = 1,
    deployment_target: Annotated[
        DeploymentTarget,
        typer.Option("--deployment-target", help="Core ML: the oldest system that will run it."),
    ] = "macOS13",
    palettize_bits: Annotated[
        int | None,
        typer.Option(
            "--palettize-bits",
            metavar="1|2|4|6|8",
            help="Core ML: store weights as indices into palettes of so many bits, found by "
            "k-means. The VAE and the preview decoder keep theirs.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="Prompts, one a line, whose runs hybrid is calibrated on: at the model's own "
            "size, in PyTorch, 200 calls of the U-Net at most.",
        ),
    ] = None,
    calibrate_steps: Annotated[
        int, typer.Option("--calibrate-steps", min=1, help="Steps of each of those runs.")
    ] = 20,
    preview_decoder: PreviewDecoderOption = None,
    unet: UnetOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    textual_inversion: TextualInversionOption = None,
    config: ConfigOption = None,
    download: DownloadOption = False,
    variant: VariantOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing bundle, as a whole.")
    ] = False,
    num_jobs: Annotated[
        int | None,
        typer.Option(
            "--num-jobs",
            "--jobs",
            min=1,
            help="Components exported at once: 1 where one is large, else 2, if left out.",
        ),
    ] = None,
    weights_in_place: Annotated[
        bool,
        typer.Option(
            "--weights-in-place",
            help="ONNX: link the checkpoint's safetensors instead of copying weights out of them. "
            "On the checkpoint's filesystem, in its own precision.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from what the same export, which failed, finished."),
    ] = False,
    engine: Annotated[
        Literal["triptych", "optimum"],
        typer.Option(
            "--engine",
            help="Who converts. What optimum-onnx and optimum-intel write is verified alike.",
        ),
    ] = "triptych",
    measure_steps: Annotated[
        int,
        typer.Option(
            "--measure-steps",
            min=0,
            help="Steps of the run that tells what compression costs, for the manifest. 0 leaves "
            "it out.",
        ),
    ] = 4,
    json: JsonOption = False,
) -> None:
    """Export a checkpoint to bundles that runtimes open.

    Every component is run against PyTorch before the bundle appears. Exit code 1 when one
    disagrees; then nothing is written and nothing that was there is touched.
    """
    from triptych.exporters.base import CoreMlSettings, ExportSettings
    from triptych.workflows.calibration import read_calibration
    from triptych.workflows.compose import ComposeRequest, composed
    from triptych.workflows.export import ExportRequest, estimate_request, export_bundles
    from triptych.workflows.inspect import inspect_path
    from triptych.workflows.unfinished_export import unfinished_exports

    parts = ComposeRequest(
        checkpoint=checkpoint,
        variant=variant,
        unet=unet,
        vae=vae,
        loras=parse_loras(lora),
        textual_inversions=parse_inversions(textual_inversion),
        config=config,
        download=download,
    )
    request = ExportRequest(
        checkpoint=checkpoint,
        output=output,
        formats=cast("list[FormatName]", to),
        components=cast("list[ComponentName]", component or []),
        settings=ExportSettings(
            precision=precision,
            height_px=height_px,
            width_px=width_px,
            weights_in_place=weights_in_place,
            calibration=None
            if calibrate is None
            else read_calibration(calibrate, num_inference_steps=calibrate_steps),
            coreml=CoreMlSettings(
                attention=coreml_attention,
                batch=cast("Literal[1, 2]", coreml_batch),
                num_chunks=cast("Literal[1, 2]", coreml_chunks),
                deployment_target=deployment_target,
                palette_bits=cast("PaletteBits | None", palettize_bits),
            ),
        ),
        variant=variant,
        preview_decoder=preview_decoder,
        overwrite=overwrite,
        resume=resume,
        num_jobs=num_jobs,
        engine=engine,
        measure_steps=measure_steps,
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

        with composed(parts) as (folder, folder_variant):
            request = replace(request, checkpoint=folder, variant=folder_variant)
            estimate = estimate_request(request)
            if estimate.disk_bytes > _WORTH_TELLING:
                note(_estimate_text(estimate))
            try:
                bundles = export_bundles(request, progress=progress)
            except TriptychError:
                for left in unfinished_exports(output, request.formats):
                    note(f"{left}: finished components; --resume goes on from them")
                raise
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
        for line in parity_lines(summary):
            say(f"  {line}")
    note(f"next: {_next_command(summaries[0])}")


def _estimate_text(estimate: "ExportEstimate") -> str:
    scratch = f" and {size_text(estimate.scratch_bytes)} meanwhile" * bool(estimate.scratch_bytes)
    return (
        f"about {size_text(estimate.disk_bytes)} on the disk{scratch}, "
        f"{size_text(estimate.memory_bytes)} of memory, {estimate.seconds / 60:.0f} minutes"
    )


def _next_command(summary: "Summary") -> str:
    """What to do with a bundle, by the kind of its model."""
    if summary.kind == "refiner":
        return f"triptych sample BASE --refiner {summary.path} --prompt 'a cat' --output pictures"
    files = " --image PICTURE --mask MASK" if summary.kind == "inpainting" else ""
    return f"triptych sample {summary.path}{files} --prompt 'a cat' --output pictures"
