"""triptych demo-checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.console import say


def demo_checkpoint(
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
) -> None:
    """Write the small trained SDXL that comes along: it draws one shape on a background.

    For example "a small red circle at the left on a blue background"; `triptych quality` says how
    well it, or what was made of it, does so.
    """
    from triptych.testing import demo_checkpoint as write

    say(f"{write(folder)}: an SDXL checkpoint in diffusers layout")
