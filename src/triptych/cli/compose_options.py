"""The options that say what a checkpoint is composed of, for compose and export."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from triptych.errors import UsageError

if TYPE_CHECKING:
    from triptych.workflows.compose import NamedInversion, ScaledLora

VaeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--vae",
        metavar="PATH",
        help="Another VAE, such as madebyollin/sdxl-vae-fp16-fix: a folder, or a file in "
        "diffusers' or the original layout.",
    ),
]

ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FOLDER",
        help="For a single file: a checkpoint in diffusers layout to take configs and tokenizers "
        "from. Default: SDXL's, with tokenizers from this machine's cache of the hub.",
    ),
]

DownloadOption: TypeAlias = Annotated[
    bool,
    typer.Option("--download", help="Fetch models that are named by their id on the hub."),
]

LoraOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH[:SCALE]",
        help="A LoRA to fuse, in the names of diffusers, PEFT or Kohya. May be repeated: they add.",
    ),
]


TextualInversionOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--textual-inversion",
        metavar="[TOKEN=]PATH",
        help="An embedding for prompts to name. Default of TOKEN: as the file says, or its name. "
        "May be repeated.",
    ),
]


def parse_inversions(texts: list[str] | None) -> "tuple[NamedInversion, ...]":
    """Textual inversions from `[TOKEN=]PATH`; a path that exists as it is written has no token."""
    from triptych.workflows.compose import NamedInversion

    return tuple(
        NamedInversion(path=Path(path), token=token)
        if (token and path and not Path(text).exists())
        else NamedInversion(path=Path(text))
        for text in texts or ()
        for token, _, path in [text.partition("=")]
    )


def parse_loras(texts: list[str] | None) -> "tuple[ScaledLora, ...]":
    """LoRAs from `PATH[:SCALE]`; a path that exists as it is written has no scale.

    Raises:
        UsageError: a scale is not finite.
    """
    return tuple(_parse_lora(text) for text in texts or ())


def _parse_lora(text: str) -> "ScaledLora":
    from triptych.workflows.compose import ScaledLora

    path, colon, written = text.rpartition(":")
    try:
        scale = float(written) if path else 1.0
    except ValueError:  # of a drive's letter, or none
        return ScaledLora(path=Path(text))
    if not colon or Path(text).exists():
        return ScaledLora(path=Path(text))
    if not math.isfinite(scale):
        raise UsageError(f"lora: got the scale {written} in {text!r}, want a finite number.")
    return ScaledLora(path=Path(path), scale=scale)
