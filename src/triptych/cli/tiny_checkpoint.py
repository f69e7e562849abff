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
) -> None:
    """Make a tiny SDXL checkpoint with random weights: all of its topology in a few megabytes."""
    from triptych.testing import tiny_checkpoint as make

    with working("making a checkpoint"):
        made = make(folder, seed=seed, kind=kind)
    say(f"{made}: an SDXL checkpoint in diffusers layout")
