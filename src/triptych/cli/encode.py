"""triptych encode."""

from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.console import note, print_json, say, working
from triptych.cli.options import (
    ClipSkipOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    NegativePrompt2Option,
    NegativePromptOption,
    PrecisionOption,
    Prompt2Option,
    PromptWeightingOption,
    RuntimeOption,
    ThreadsOption,
    VariantOption,
    one_for_each,
    runtime_settings,
)


def encode(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint.")],
    *,
    prompt: Annotated[list[str], typer.Option("--prompt", help="May be repeated for a batch.")],
    output: Annotated[Path, typer.Option("--output", help="A .safetensors file to make.")],
    prompt_2: Prompt2Option = None,
    negative_prompt: NegativePromptOption = None,
    negative_prompt_2: NegativePrompt2Option = None,
    prompt_weighting: PromptWeightingOption = False,
    clip_skip: ClipSkipOption = 0,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    num_threads: ThreadsOption = None,
    variant: VariantOption = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare file hashes first.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output file.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Encode prompts into a file for sample --prompt-embeds.

    Its tensors have diffusers' names: prompt_embeds, pooled_prompt_embeds and both negative ones.
    """
    from triptych.sampling.prompt_encoding import Prompts
    from triptych.workflows.encode import EncodeRequest, encode_to_file

    request = EncodeRequest(
        bundle=bundle,
        output=output,
        prompts=Prompts(
            prompt=tuple(prompt),
            prompt_2=one_for_each(prompt_2, len(prompt)),
            negative_prompt=one_for_each(negative_prompt, len(prompt)),
            negative_prompt_2=one_for_each(negative_prompt_2, len(prompt)),
            prompt_weighting=prompt_weighting,
            clip_skip=clip_skip,
        ),
        runtime=runtime,
        runtime_settings=runtime_settings(
            device=device,
            compute_units=compute_units,
            precision=precision,
            num_threads=num_threads,
        ),
        variant=variant,
        verify=verify,
        overwrite=overwrite,
    )
    with working("encoding"):
        result = encode_to_file(request)
    for warning in result.warnings:
        note(f"note: {warning}")
    if json:
        shapes = {name: list(shape) for name, shape in result.shapes.items()}
        print_json({"output": str(result.output), "tensors": shapes})
        return
    say(f"{result.output}: {len(prompt)} prompts")
