"""triptych compose."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.compose_options import (
    ConfigOption,
    DownloadOption,
    LoraOption,
    TextualInversionOption,
    VaeOption,
    parse_inversions,
    parse_loras,
)
from triptych.cli.console import print_json, say, working
from triptych.cli.options import JsonOption, VariantOption


def compose(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint in diffusers layout, a single file in SDXL's original one, or a "
            "model's id on the hub."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="A folder to make.")],
    *,
    vae: VaeOption = None,
    lora: LoraOption = None,
    textual_inversion: TextualInversionOption = None,
    config: ConfigOption = None,
    download: DownloadOption = False,
    variant: VariantOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a composed checkpoint that exists.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compose a checkpoint of several parts, to name wherever a checkpoint is wanted.

    No weight is copied: the folder says where each lies and how it is made. Moved or changed files
    are noticed when it is opened.
    """
    import msgspec

    from triptych.workflows.compose import ComposeRequest, compose_checkpoint

    request = ComposeRequest(
        checkpoint=checkpoint,
        variant=variant,
        vae=vae,
        loras=parse_loras(lora),
        textual_inversions=parse_inversions(textual_inversion),
        config=config,
        download=download,
    )
    with working("composing"):
        composed = compose_checkpoint(request, output, overwrite=overwrite)
    sources = composed.composition.sources if composed.composition else ()
    if json:
        print_json(
            {
                "output": str(output),
                "kind": composed.config.kind,
                "sources": msgspec.to_builtins(sources),
            }
        )
        return
    say(f"{output}: SDXL {composed.config.kind} of {', '.join(one.text() for one in sources)}")
