"""Run the text encoders alone and keep what they gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.bundle.bundle import open_bundle
from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.pipeline import encode
from triptych.sampling.prompt_embeddings import embeddings_from_encoded
from triptych.sampling.prompt_encoding import Prompts
from triptych.workflows.prompt_embeds_file import check_new_file, write_prompt_embeds
from triptych.workflows.runtime_choice import choose_runtime
from triptych.workflows.sample import truncation_warnings


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
    """What to encode, and where to put it.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        output: a .safetensors file to make.
        prompts: what is asked for.
        runtime: the engine; None takes the one that reads the bundle's format.
        runtime_settings: device, precision, threads.
        variant: the weight variant, for a checkpoint.
        verify: compare every file's hash with the manifest first.
        overwrite: replace an existing output file.
    """

    bundle: Path
    output: Path
    prompts: Prompts
    runtime: str | None = None
    runtime_settings: RuntimeSettings
    variant: str | None = None
    verify: bool = True
    overwrite: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeResult:
    """What was written.

    Attributes:
        output: the file.
        shapes: of its tensors, by name.
        warnings: what the user should know, such as prompts that were cut.
    """

    output: Path
    shapes: Mapping[str, tuple[int, ...]]
    warnings: tuple[str, ...]


def encode_to_file(request: EncodeRequest) -> EncodeResult:
    """Encode prompts into a file that `sample` takes instead of prompts, and diffusers too.

    Both sides are written: without a negative prompt the unconditional one is what this model
    takes then, zeros or the empty prompt's.

    Raises:
        UsageError: prompts that cannot be, or an output file that exists.
        BundleError: the bundle is incomplete or corrupt.
        BackendError: the engine or device is missing.
    """
    check_new_file(request.output, overwrite=request.overwrite)
    bundle = open_bundle(request.bundle, variant=request.variant)
    runtime = choose_runtime(bundle, request.runtime, request.runtime_settings)
    if request.verify:
        bundle.check_files()
    encoded, _ = encode(bundle, runtime, request.prompts)
    embeddings = embeddings_from_encoded(encoded)
    write_prompt_embeds(request.output, embeddings)
    return EncodeResult(
        output=request.output,
        shapes={name: tensor.shape for name, tensor in embeddings.tensors().items()},
        warnings=tuple(truncation_warnings(encoded)),
    )
