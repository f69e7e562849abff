"""The options that say what a checkpoint is composed of, for compose and export."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

VaeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--vae",
        metavar="PATH",
        help="Another VAE, such as madebyollin/sdxl-vae-fp16-fix: a folder, or a file in "
        "diffusers' or the original layout.",
    ),
]
