"""triptych record."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from triptych.cli.console import progress_bars, say, size_text
from triptych.cli.options import (
    LowMemoryOption,
    NegativePrompt2Option,
    NegativePromptOption,
    PreviewDecoderOption,
    Prompt2Option,
    ThreadsOption,
    VariantOption,
    one_for_each,
)
from triptych.errors import UsageError


def record(
    checkpoint: Annotated[Path, typer.Argument(help="The reference, in diffusers layout.")],
    golden: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")] = "cpu",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option("--precision", help="To compute in.")
    ] = "fp32",
    profile: Annotated[
        Literal["quick", "full"],
        typer.Option(
            "--profile", help="full also measures what fp16 and bf16 cost, for checks of those."
        ),
    ] = "quick",
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Default: one longer than 77 tokens.")
    ] = None,
    prompt_2: Prompt2Option = None,
    negative_prompt: NegativePromptOption = None,
    negative_prompt_2: NegativePrompt2Option = None,
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", min=1, help="Steps of the run.")
    ] = 8,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", help="Up to 1 is none. Default: 5.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="NAME", help="Default: the checkpoint's own."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the run's noise.")] = 0,
    height_px: Annotated[
        int | None, typer.Option("--height-px", min=8, help="Pixels. Default: the model's own.")
    ] = None,
    width_px: Annotated[
        int | None, typer.Option("--width-px", min=8, help="Pixels. Default: the model's own.")
    ] = None,
    num_threads: ThreadsOption = None,
    low_memory: LowMemoryOption = False,
    preview_decoder: PreviewDecoderOption = None,
    variant: VariantOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a golden that exists.")
    ] = False,
) -> None:
    """Record what PyTorch gives for a checkpoint, to check bundles against it anywhere.

    A golden holds the inputs and outputs of every component, every step's latents, pictures, and
    what they were made with. No weights: `check --reference GOLDEN` needs neither torch nor the
    checkpoint.
    """
    from triptych.runtimes.base import RuntimeSettings
    from triptych.sampling.prompt_encoding import Prompts
    from triptych.sampling.schedulers import SchedulerChoice
    from triptych.workflows.record import RecordRequest, RunRequest, record_golden

    if prompt is None and (prompt_2 or negative_prompt or negative_prompt_2):
        raise UsageError("prompt: got none beside another prompt, want --prompt too.")
    prompts = None
    if prompt is not None:
        prompts = Prompts(
            prompt=(prompt,),
            prompt_2=one_for_each(prompt_2, 1),
            negative_prompt=one_for_each(negative_prompt, 1),
            negative_prompt_2=one_for_each(negative_prompt_2, 1),
        )
    request = RecordRequest(
        checkpoint=checkpoint,
        golden=golden,
        run=RunRequest(
            prompts=prompts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            scheduler=SchedulerChoice(name=scheduler),
            seed=seed,
            height_px=height_px,
            width_px=width_px,
        ),
        runtime_settings=RuntimeSettings(
            device=device,
            precision=precision,
            num_threads=num_threads,
            low_memory=low_memory,
        ),
        profile=profile,
        variant=variant,
        preview_decoder=preview_decoder,
        overwrite=overwrite,
        command=("triptych", *sys.argv[1:]),
    )
    with progress_bars() as bars:
        task = bars.add_task("recording", total=None, stage="")
        recording = record_golden(request, report=lambda stage: bars.update(task, stage=stage))
        bars.update(task, total=1, completed=1, stage="done")
    size = sum(path.stat().st_size for path in golden.iterdir())
    execution = recording.execution
    say(
        f"{golden}: {len(recording.noise_preds)} steps, {len(recording.cases)} component runs, "
        f"{len(recording.floors)} floors, {size_text(size)}"
    )
    ran = f"{execution.version}, {execution.device}, {execution.precision}"
    say(f"recorded on {execution.runtime} {ran}")
    say(f"next: triptych check BUNDLE --reference {golden}")
