"""triptych tiny-checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from triptych.cli.console import say, working


def tiny_checkpoint(
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
    *,
    seed: Annotated[int, typer.Option("--seed", help="Of the random weights.")] = 0,
    kind: Annotated[
        Literal["base", "refiner", "inpaint"],
        typer.Option("--kind", help="SDXL base, its refiner, or a U-Net for inpainting."),
    ] = "base",
    full_size: Annotated[
        bool,
        typer.Option(
            "--full-size", help="SDXL base as large as it is published: 6.9 GB in float16."
        ),
    ] = False,
) -> None:
    """Make a tiny SDXL checkpoint with random weights: all of its topology in a few megabytes."""
    from triptych.errors import UsageError
    from triptych.testing import full_size_checkpoint
    from triptych.testing import tiny_checkpoint as make

    if full_size and kind != "base":
        raise UsageError(f"--full-size: got --kind {kind}, want base, the only one that is made.")
    with working("making a checkpoint"):
        if full_size:
            made = full_size_checkpoint(folder, seed=seed)
        else:
            made = make(folder, seed=seed, kind=kind)
    say(f"{made}: an SDXL checkpoint in diffusers layout")
