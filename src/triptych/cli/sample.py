"""triptych sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.console import note, print_json, progress_bars, say
from triptych.cli.options import (
    CacheOption,
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
    chosen_device,
    one_for_each,
)
from triptych.cli.scheduler_options import (
    EtaOption,
    SchedulerOption,
    SigmaSpacingOption,
    SigmaValuesOption,
    TimestepsOption,
    scheduler_choice,
)
from triptych.errors import UsageError
from triptych.sampling.guidance import GuidanceMode

if TYPE_CHECKING:
    from triptych.sampling.callbacks import StepCallback
    from triptych.sampling.conditioning import Prompts
    from triptych.sampling.loop import StepEvent
    from triptych.sampling.prompt_embeddings import PromptEmbeddings

_Pair = tuple[int, int]


def sample(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint.")],
    *,
    output: Annotated[Path, typer.Option("--output", help="A folder to make.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="May be repeated for a batch.")
    ] = None,
    prompt_2: Prompt2Option = None,
    negative_prompt: NegativePromptOption = None,
    negative_prompt_2: NegativePrompt2Option = None,
    prompt_weighting: PromptWeightingOption = False,
    clip_skip: ClipSkipOption = 0,
    prompt_embeds: Annotated[
        Path | None,
        typer.Option(
            "--prompt-embeds",
            metavar="FILE",
            help="Encoded prompts, from triptych encode, instead of any prompt.",
        ),
    ] = None,
    num_inference_steps: Annotated[
        int, typer.Option("--num-inference-steps", min=1, help="Steps of the run.")
    ] = 50,
    scheduler: SchedulerOption = None,
    sigmas: SigmaSpacingOption = None,
    timesteps: TimestepsOption = "",
    sigma_values: SigmaValuesOption = "",
    eta: EtaOption = 0.0,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", help="Up to 1: no guidance.")
    ] = 5.0,
    guidance_mode: Annotated[
        GuidanceMode,
        typer.Option("--guidance-mode", help="One U-Net call a step, or two of half the size."),
    ] = "batched",
    save_steps: Annotated[
        str, typer.Option("--save-steps", metavar="1,4,8", help="Default: the last.")
    ] = "",
    height_px: Annotated[
        int | None, typer.Option("--height-px", help="Divisible by 8. Default: as trained.")
    ] = None,
    width_px: Annotated[
        int | None, typer.Option("--width-px", help="Divisible by 8. Default: as trained.")
    ] = None,
    num_images_per_prompt: Annotated[int, typer.Option("--num-images-per-prompt", min=1)] = 1,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", help="One for all, or repeated: one a picture. Default: 0."),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option("--latents", help="Unit noise from a .safetensors or .npy file."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="A picture to start from, instead of noise alone."),
    ] = None,
    strength: Annotated[
        float, typer.Option("--strength", help="How much of --image is made anew, 0 to 1.")
    ] = 0.3,
    denoising_end: Annotated[
        float | None,
        typer.Option("--denoising-end", help="Stop after this part of the schedule, 0 to 1."),
    ] = None,
    original_size: Annotated[
        _Pair | None, typer.Option("--original-size", help="Micro-conditioning: height width.")
    ] = None,
    crop: Annotated[_Pair, typer.Option("--crop", help="Micro-conditioning: top left.")] = (0, 0),
    target_size: Annotated[
        _Pair | None, typer.Option("--target-size", help="Micro-conditioning: height width.")
    ] = None,
    negative_original_size: Annotated[
        _Pair | None, typer.Option("--negative-original-size", help="With --negative-target-size.")
    ] = None,
    negative_crop: Annotated[_Pair, typer.Option("--negative-crop")] = (0, 0),
    negative_target_size: Annotated[
        _Pair | None, typer.Option("--negative-target-size", help="See --negative-original-size.")
    ] = None,
    previews: Annotated[
        bool, typer.Option("--previews", help="Write a quick preview of every step.")
    ] = False,
    callback: Annotated[
        list[str] | None,
        typer.Option(
            "--callback",
            metavar="MODULE:FUNCTION",
            help="Called after every step, as diffusers' callback_on_step_end. May be repeated.",
        ),
    ] = None,
    callback_tensors: Annotated[
        str,
        typer.Option(
            "--callback-tensors",
            metavar="latents,...",
            help="What callbacks are given that do not say so themselves.",
        ),
    ] = "latents",
    guidance_cutoff: Annotated[
        float | None,
        typer.Option("--guidance-cutoff", help="Turn guidance off after this part of the run."),
    ] = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    num_threads: ThreadsOption = None,
    variant: VariantOption = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare file hashes first.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output folder.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Sample pictures step by step.

    Writes step_01.png ... for the saved steps, final.png with the pixels of the last of them,
    latents.safetensors, and run.json with everything needed to repeat the run.
    """
    from triptych.runtimes.base import RuntimeSettings
    from triptych.sampling.conditioning import MicroConditioning
    from triptych.sampling.settings import Settings
    from triptych.workflows import sample as workflow
    from triptych.workflows.noise_file import read_noise

    settings = Settings(
        prompts=_what_is_asked(
            {
                "prompt": prompt,
                "prompt_2": prompt_2,
                "negative_prompt": negative_prompt,
                "negative_prompt_2": negative_prompt_2,
            },
            prompt_weighting=prompt_weighting,
            clip_skip=clip_skip,
            prompt_embeds=prompt_embeds,
        ),
        num_inference_steps=num_inference_steps,
        scheduler=scheduler_choice(
            name=scheduler,
            sigma_spacing=sigmas,
            timesteps=timesteps,
            sigma_values=sigma_values,
            eta=eta,
        ),
        guidance_scale=guidance_scale,
        guidance_mode=guidance_mode,
        height_px=height_px,
        width_px=width_px,
        num_images_per_prompt=num_images_per_prompt,
        seeds=tuple(seed or (0,)),
        noise=read_noise(latents) if latents else None,
        sizes=MicroConditioning(
            original_size=original_size,
            crop=crop,
            target_size=target_size,
            negative_original_size=negative_original_size,
            negative_crop=negative_crop,
            negative_target_size=negative_target_size,
        ),
        denoising_end=denoising_end,
    )
    request = workflow.SampleRequest(
        bundle=bundle,
        output=output,
        settings=settings,
        image=image,
        strength=strength,
        save_steps=_steps(save_steps),
        previews=previews,
        runtime=runtime,
        runtime_settings=RuntimeSettings(
            device=chosen_device(device, compute_units),
            precision=precision,
            num_threads=num_threads,
            cache_dir=cache_dir,
        ),
        variant=variant,
        verify=verify,
        overwrite=overwrite,
    )
    with progress_bars() as bars:
        task = bars.add_task("sampling", total=num_inference_steps, stage="text encoders")

        def observe(event: "StepEvent") -> None:
            last = event.index + 1 == event.num_inference_steps
            stage = "decoding" if last else f"sigma {event.sigma_next:.2f}"
            total = event.num_inference_steps
            bars.update(task, completed=event.index + 1, total=total, stage=stage)

        result = workflow.sample(
            request,
            observers=[observe],
            callback_on_step_end=_callback(callback or [], callback_tensors, guidance_cutoff),
        )
        bars.update(task, stage="done")
    for warning in result.warnings:
        note(f"note: {warning}")
    if json:
        print_json(result.run)
        return
    say(f"{result.output}: steps {', '.join(str(step) for step in result.pictures)}")


def _callback(
    names: list[str], tensors: str, guidance_cutoff: float | None
) -> "StepCallback | None":
    """All that was asked for as one callback; None where nothing was."""
    from triptych.sampling.controllers import CallbackChain, GuidanceCutoff
    from triptych.workflows.callback_import import import_callback

    callbacks: list[StepCallback] = [import_callback(name) for name in names]
    if guidance_cutoff is not None:
        callbacks.append(GuidanceCutoff(cutoff_step_ratio=guidance_cutoff))
    given = [name.strip() for name in tensors.split(",")]
    return CallbackChain(callbacks, given=given) if callbacks else None


def _steps(text: str) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        return tuple(int(step) for step in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"got {text!r}, want step numbers with commas between, such as 1,4,8."
        ) from error


def _what_is_asked(
    prompts: dict[str, list[str] | None],
    *,
    prompt_weighting: bool,
    clip_skip: int,
    prompt_embeds: Path | None,
) -> "Prompts | PromptEmbeddings":
    """Prompts, or a file of embeddings in their place."""
    from triptych.sampling.conditioning import Prompts
    from triptych.workflows.prompt_embeds_file import read_prompt_embeds

    prompt = prompts["prompt"]
    if prompt_embeds is None:
        if not prompt:
            raise UsageError("prompt: got none, want --prompt or --prompt-embeds.")
        others = {name: one_for_each(texts, len(prompt)) for name, texts in prompts.items()}
        return Prompts(
            prompt=tuple(prompt),
            prompt_2=others["prompt_2"],
            negative_prompt=others["negative_prompt"],
            negative_prompt_2=others["negative_prompt_2"],
            prompt_weighting=prompt_weighting,
            clip_skip=clip_skip,
        )
    wishes = {**prompts, "prompt_weighting": prompt_weighting, "clip_skip": clip_skip}
    given = [name for name, wish in wishes.items() if wish]
    if given:
        option = given[0].replace("_", "-")
        raise UsageError(f"prompt: got --prompt-embeds and --{option}, want one of them.")
    return read_prompt_embeds(prompt_embeds)
