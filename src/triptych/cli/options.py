"""Options that several commands share, so that one word means one thing everywhere."""

from typing import Annotated, TypeAlias

import typer

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

RuntimeOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--runtime", metavar="NAME", help="Engine. Default: the one that reads the bundle's format."
    ),
]

DeviceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="In the engine's own words: cpu, cuda or mps for pytorch, an execution provider's "
        "name for onnxruntime. Default: the CPU.",
    ),
]

ThreadsOption: TypeAlias = Annotated[
    int | None, typer.Option("--num-threads", min=1, help="CPU threads inside one operator.")
]

VariantOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="Weight variant of a checkpoint, such as fp16."),
]
