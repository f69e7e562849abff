"""triptych inspect."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import print_json, say, size_text, stdout, working
from triptych.cli.options import JsonOption, VariantOption

if TYPE_CHECKING:
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
    kind = f"{summary.kind} {summary.distilled}" if summary.distilled else summary.kind
    say(f"{summary.path}: SDXL {kind}, {summary.format} format, {summary.origin}{precision}")
    table = Table()
    for heading in ("component", "parameters", "weights", "size", "inputs and outputs", "verified"):
        table.add_column(heading)
    for part in summary.components:
        table.add_row(
            part.name,
            "?" if part.num_parameters is None else f"{part.num_parameters:,}",
            _weights(part),
            size_text(part.size_bytes),
            _ports(part),
            "-" if part.verified is None else f"{part.verified:.1e}",
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
    for problem in summary.problems:
        console.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)


def _weights(part: "ComponentSummary") -> str:
    dtypes = ", ".join(part.weight_dtypes)
    return f"{dtypes}, opset {part.opset}" if part.opset else dtypes


def _ports(part: "ComponentSummary") -> str:
    ports = [f"{tensor.name} {tensor.text()}" for tensor in part.inputs]
    shown = [f"→ {tensor.name} {tensor.text()}" for tensor in part.outputs[:2]]
    rest = len(part.outputs) - len(shown)
    more = [f"→ {rest} more"] if rest else []
    return "\n".join(ports + shown + more).replace("[", r"\[")
