"""Options that several commands share, so that one word means one thing everywhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from triptych.errors import UsageError

if TYPE_CHECKING:
    from triptych.runtimes.base import RuntimeSettings

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
        "name for onnxruntime, CPU, GPU or NPU for openvino. Default: the CPU.",
    ),
]

ComputeUnitsOption: TypeAlias = Annotated[
    Literal["all", "cpu_and_gpu", "cpu_only", "cpu_and_ne"] | None,
    typer.Option("--compute-units", help="The device of coreml, in its words. Default: all."),
]

PrecisionOption: TypeAlias = Annotated[
    Literal["fp32", "fp16", "bf16"] | None,
    typer.Option(
        "--precision",
        help="What to compute in, where the engine can choose. Default: fp32; ONNX Runtime and "
        "Core ML compute in what was exported.",
    ),
]

CacheOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        help="Keep compiled networks there, for openvino to start faster the next time.",
    ),
]

ThreadsOption: TypeAlias = Annotated[
    int | None, typer.Option("--num-threads", min=1, help="CPU threads inside one operator.")
]

MapWeightsOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--map-weights/--no-map-weights",
        help="ONNX Runtime: leave weights in their files, mapped, or repack them in memory.",
    ),
]

LowMemoryOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Leave weights in their files and convert them whenever they are used, however long "
        "that takes. PyTorch on CPUs, ONNX Runtime, OpenVINO.",
    ),
]

PromptCacheOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache",
        metavar="FOLDER",
        envvar="TRIPTYCH_PROMPT_CACHE",
        help="Keep encoded prompts here: one that comes again opens no text encoder.",
    ),
]

PreviewDecoderOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--preview-decoder",
        metavar="FOLDER",
        help="An AutoencoderTiny such as madebyollin/taesdxl, where it is not in the checkpoint's "
        "own preview_decoder/.",
    ),
]

VariantOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--variant", metavar="NAME", help="Weight variant of a checkpoint, such as fp16."),
]


Prompt2Option: TypeAlias = Annotated[
    list[str] | None, typer.Option("--prompt-2", help="For text_encoder_2. Default: --prompt.")
]

NegativePromptOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--negative-prompt", help="Default: zeros, where the model says so."),
]

NegativePrompt2Option: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--negative-prompt-2", help="For text_encoder_2. Default: --negative-prompt."),
]

PromptWeightingOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--prompt-weighting",
        help='Read Compel\'s syntax: word+, (some words)1.3, ("a", "b").blend(1, 2).',
    ),
]


ClipSkipOption: TypeAlias = Annotated[
    int,
    typer.Option(
        "--clip-skip",
        min=0,
        help="Layers to skip before the penultimate hidden state, for --prompt and --prompt-2.",
    ),
]


def one_for_each(texts: list[str] | None, count: int) -> tuple[str, ...] | None:
    """An option's texts, one for each prompt; one text serves every prompt."""
    if not texts:
        return None
    return tuple(texts) * count if len(texts) == 1 else tuple(texts)


def runtime_settings(
    *,
    device: str | None,
    compute_units: str | None,
    precision: Literal["fp32", "fp16", "bf16"] | None,
    num_threads: int | None,
    cache_dir: Path | None = None,
    map_weights: bool = True,
    low_memory: bool = False,
) -> "RuntimeSettings":
    """What an engine is told; the device by either of its names.

    Raises:
        UsageError: the device was given by both.
    """
    from triptych.runtimes.base import RuntimeSettings

    if device is not None and compute_units is not None:
        raise UsageError("device: got --device and --compute-units, want one of them.")
    return RuntimeSettings(
        device=device or compute_units,
        precision=precision,
        num_threads=num_threads,
        cache_dir=cache_dir,
        map_weights=map_weights,
        low_memory=low_memory,
    )
