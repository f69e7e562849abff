"""triptych inspect."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import print_json, say, size_text, stdout, working
from triptych.cli.options import JsonOption, VariantOption

if TYPE_CHECKING:
    from triptych.bundle.manifest import Distance
    from triptych.workflows.inspect import ComponentSummary, Summary


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a bundle, also a foreign one.")],
    *,
    variant: VariantOption = None,
    json: JsonOption = False,
) -> None:
    """Say what a checkpoint or bundle holds, and what is missing or corrupt.

    Exit code 3 when something is.
    """
    from triptych.workflows.inspect import inspect_path

    with working("inspecting"):
        summary = inspect_path(path, variant=variant)
    if json:
        print_json(summary.to_json())
    else:
        _print_summary(summary)
    if summary.problems:
        raise typer.Exit(3)


def _print_summary(summary: "Summary") -> None:
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    precision = f", exported as {summary.precision}" if summary.precision else ""
    say(
        f"{summary.path}: SDXL {summary.kind}, {summary.format} format, {summary.origin}{precision}"
    )
    table = Table()
    headings = ("component", "parameters", "weights", "size", "inputs and outputs", "verified")
    measured = {} if summary.parity is None else summary.parity.components
    for heading in (*headings, *(["measured"] if measured else [])):
        table.add_column(heading)
    for part in summary.components:
        table.add_row(
            part.name,
            "?" if part.num_parameters is None else f"{part.num_parameters:,}",
            _weights(part),
            size_text(part.size_bytes),
            _ports(part),
            "-" if part.verified is None else f"{part.verified:.1e}",
            *([_distance_text(measured.get(part.name))] if measured else []),
        )
    console.print(table)
    if summary.scheduler:
        settings = ", ".join(f"{name} {value}" for name, value in summary.scheduler.items())
        say(f"schedule: {settings}")
    if summary.sources:
        say(f"made of: {', '.join(source.text() for source in summary.sources)}")
    if summary.toolchain:
        tools = ", ".join(f"{name} {version}" for name, version in summary.toolchain.items())
        say(f"made with: {tools}")
    for line in parity_lines(summary):
        say(line)
    for problem in summary.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)


def parity_lines(summary: "Summary") -> Iterator[str]:
    """What compression costs, for people; nothing where that was not measured."""
    parity = summary.parity
    if parity is None:
        return
    yield (
        f"measured: {parity.engine} {parity.engine_version} beside {parity.reference} in float32, "
        f"{parity.num_inference_steps} steps at {parity.height_px} x {parity.width_px} px "
        f"(height x width), guidance {parity.guidance_scale:g}"
    )
    if parity.trajectory is not None and parity.worst_step_rel_l2 is not None:
        yield (
            f"last latents {_distance_text(parity.trajectory)}; furthest after step "
            f"{parity.worst_step}, {parity.worst_step_rel_l2:.1e}"
        )
    if parity.image is not None and parity.image_ssim is not None:
        yield f"picture {_distance_text(parity.image)}, SSIM {parity.image_ssim:.4f}"


def _distance_text(distance: "Distance | None") -> str:
    if distance is None:
        return "-"
    psnr = "" if distance.psnr_db is None else f", {distance.psnr_db:.1f} dB"
    return f"{distance.rel_l2:.1e}{psnr}"


def _weights(part: "ComponentSummary") -> str:
    total = sum(part.weight_dtypes.values())
    dtypes = ", ".join(
        f"{name} {_share(count / total)}" if len(part.weight_dtypes) > 1 else name
        for name, count in part.weight_dtypes.items()
    )
    return f"{dtypes}, opset {part.opset}" if part.opset else dtypes


def _share(fraction: float) -> str:
    """A share for people: 97%, or <1%."""
    return f"{fraction:.0%}" if fraction >= 0.01 else "<1%"


def _ports(part: "ComponentSummary") -> str:
    ports = [f"{tensor.name} {tensor.text()}" for tensor in part.inputs]
    shown = [f"→ {tensor.name} {tensor.text()}" for tensor in part.outputs[:2]]
    rest = len(part.outputs) - len(shown)
    more = [f"→ {rest} more"] if rest else []
    return "\n".join(ports + shown + more).replace("[", r"\[")
