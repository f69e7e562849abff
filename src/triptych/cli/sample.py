"""triptych sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from triptych.cli.console import note, print_json, progress_bars, say
from triptych.cli.options import (
    CacheOption,
    ClipSkipOption,
    ComputeUnitsOption,
    DeviceOption,
    JsonOption,
    LowMemoryOption,
    MapWeightsOption,
    NegativePrompt2Option,
    NegativePromptOption,
    PrecisionOption,
    Prompt2Option,
    PromptCacheOption,
    PromptWeightingOption,
    RuntimeOption,
    ThreadsOption,
    VariantOption,
    one_for_each,
    runtime_settings,
)
from triptych.cli.sample_options import (
    AestheticScoreOption,
    AspectRatioOption,
    CallbackOption,
    CallbackTensorsOption,
    CompareUntiledOption,
    CropOption,
    DenoisingEndOption,
    DenoisingSplitOption,
    GuidanceCutoffOption,
    GuidanceIntervalOption,
    GuidanceRescaleOption,
    GuidanceScheduleOption,
    HeightOption,
    ImageOption,
    LatentsOption,
    MaskOption,
    NegativeAestheticScoreOption,
    NegativeCropOption,
    NegativeOriginalSizeOption,
    NegativeTargetSizeOption,
    OriginalSizeOption,
    PaddingMaskCropOption,
    RefinerOption,
    RefinerRuntimeOption,
    RefinerStrengthOption,
    SaveStepsOption,
    SeedOption,
    StrengthOption,
    TargetSizeOption,
    VaeTileOption,
    WidthOption,
    aspect_ratio_from,
    image_files,
    one_callback,
    refiner_request,
    steps_from,
)
from triptych.cli.scheduler_options import (
    EtaOption,
    RhoOption,
    SchedulerOption,
    SigmaMaxOption,
    SigmaMinOption,
    SigmasOption,
    SigmaValuesOption,
    TimestepsOption,
    numbers_from,
    scheduler_choice,
)
from triptych.errors import UsageError
from triptych.sampling.guidance import GuidanceMode

if TYPE_CHECKING:
    from triptych.sampling.loop import StepEvent
    from triptych.sampling.prompt_embeddings import PromptEmbeddings
    from triptych.sampling.prompt_encoding import Prompts


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
    sigmas: SigmasOption = None,
    timesteps: TimestepsOption = "",
    sigma_values: SigmaValuesOption = "",
    sigma_min: SigmaMinOption = None,
    sigma_max: SigmaMaxOption = None,
    rho: RhoOption = None,
    eta: EtaOption = 0.0,
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", help="Up to 1: no guidance.")
    ] = 5.0,
    guidance_mode: Annotated[
        GuidanceMode,
        typer.Option("--guidance-mode", help="One U-Net call a step, or two of half the size."),
    ] = "batched",
    guidance_rescale: GuidanceRescaleOption = 0.0,
    guidance_interval: GuidanceIntervalOption = (0.0, 1.0),
    guidance_schedule: GuidanceScheduleOption = "",
    guidance_cutoff: GuidanceCutoffOption = None,
    save_steps: SaveStepsOption = "",
    height_px: HeightOption = None,
    width_px: WidthOption = None,
    aspect_ratio: AspectRatioOption = None,
    num_images_per_prompt: Annotated[int, typer.Option("--num-images-per-prompt", min=1)] = 1,
    seed: SeedOption = None,
    latents: LatentsOption = None,
    image: ImageOption = None,
    strength: StrengthOption = None,
    mask: MaskOption = None,
    padding_mask_crop: PaddingMaskCropOption = None,
    denoising_end: DenoisingEndOption = None,
    refiner: RefinerOption = None,
    denoising_split: DenoisingSplitOption = None,
    refiner_strength: RefinerStrengthOption = 0.3,
    refiner_runtime: RefinerRuntimeOption = None,
    aesthetic_score: AestheticScoreOption = 6.0,
    negative_aesthetic_score: NegativeAestheticScoreOption = 2.5,
    original_size: OriginalSizeOption = None,
    crop: CropOption = (0, 0),
    target_size: TargetSizeOption = None,
    negative_original_size: NegativeOriginalSizeOption = None,
    negative_crop: NegativeCropOption = (0, 0),
    negative_target_size: NegativeTargetSizeOption = None,
    previews: Annotated[
        Literal["linear", "vae", "preview-decoder"] | None,
        typer.Option(
            "--previews",
            help="Write a preview of every step: by a linear map at no cost, by the VAE, or by the "
            "small decoder that a bundle may have.",
        ),
    ] = None,
    preview_of: Annotated[
        Literal["denoised", "latents"],
        typer.Option(
            "--preview-of", help="What a step believes the picture is (x0), or holds (x_t)."
        ),
    ] = "denoised",
    callback: CallbackOption = None,
    callback_tensors: CallbackTensorsOption = "latents",
    callback_arrays: Annotated[
        Literal["auto", "numpy", "torch"],
        typer.Option(
            "--callback-arrays",
            help="What callbacks are given. auto: torch tensors if their module uses torch or "
            "diffusers.",
        ),
    ] = "auto",
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    compute_units: ComputeUnitsOption = None,
    precision: PrecisionOption = None,
    cache_dir: CacheOption = None,
    num_threads: ThreadsOption = None,
    map_weights: MapWeightsOption = True,
    low_memory: LowMemoryOption = False,
    prompt_cache: PromptCacheOption = None,
    keep_loaded: Annotated[
        bool,
        typer.Option(
            "--keep-loaded",
            help="Keep every component in memory to the end, so that none is opened twice. "
            "Otherwise each is closed before the next is opened.",
        ),
    ] = False,
    variant: VariantOption = None,
    vae_tile_px: VaeTileOption = None,
    compare_untiled: CompareUntiledOption = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare file hashes first.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output folder.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Sample pictures step by step: from text, from a picture, behind a mask, with a refiner.

    Writes step_01.png ... for the saved steps, final.png with the pixels of the last of them,
    latents.safetensors, and run.json with everything needed to repeat the run.
    """
    from triptych.sampling.micro_conditioning import MicroConditioning
    from triptych.sampling.settings import Settings
    from triptych.workflows.noise_file import read_noise
    from triptych.workflows.sample import sample as run_sample
    from triptych.workflows.sample_request import SampleRequest

    if guidance_cutoff is not None and (guidance_schedule or guidance_interval != (0.0, 1.0)):
        raise UsageError(
            "--guidance-cutoff: got one beside --guidance-schedule or --guidance-interval, want "
            "one of them: --guidance-interval 0 TO turns guidance off, too."
        )
    if compare_untiled and vae_tile_px is None:
        raise UsageError("--compare-untiled: got no --vae-tile-px, want both.")
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
            sigmas=sigmas,
            timesteps=timesteps,
            sigma_values=sigma_values,
            edm={"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho},
            eta=eta,
        ),
        guidance_scale=guidance_scale,
        guidance_mode=guidance_mode,
        guidance_rescale=float(guidance_rescale),
        guidance_interval=guidance_interval,
        guidance_schedule=numbers_from(guidance_schedule, "--guidance-schedule"),
        height_px=height_px,
        width_px=width_px,
        aspect_ratio=aspect_ratio_from(aspect_ratio),
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
            aesthetic_score=aesthetic_score,
            negative_aesthetic_score=negative_aesthetic_score,
        ),
        denoising_end=denoising_end,
    )
    request = SampleRequest(
        bundle=bundle,
        output=output,
        settings=settings,
        pictures=image_files(
            image=image, strength=strength, mask=mask, padding_mask_crop=padding_mask_crop
        ),
        refiner=refiner_request(
            refiner=refiner,
            denoising_split=denoising_split,
            strength=refiner_strength,
            runtime=refiner_runtime,
            variant=variant,
        ),
        save_steps=steps_from(save_steps),
        previews=previews,
        preview_of=preview_of,
        runtime=runtime,
        runtime_settings=runtime_settings(
            device=device,
            compute_units=compute_units,
            precision=precision,
            num_threads=num_threads,
            cache_dir=cache_dir,
            map_weights=map_weights,
            low_memory=low_memory,
        ),
        variant=variant,
        vae_tile_px=vae_tile_px,
        compare_untiled=compare_untiled,
        prompt_cache=prompt_cache,
        keep_loaded=keep_loaded,
        verify=verify,
        overwrite=overwrite,
    )
    with progress_bars() as bars:
        task = bars.add_task("sampling", total=num_inference_steps, stage="text encoders")

        def show(event: "StepEvent") -> None:
            last = event.index + 1 == event.num_inference_steps
            stage = "decoding" if last else f"sigma {event.sigma_next:.2f}"
            total = event.num_inference_steps
            bars.update(task, completed=event.index + 1, total=total, stage=stage)

        result = run_sample(
            request,
            on_step=show,
            callback_on_step_end=one_callback(
                callback or [],
                callback_tensors,
                arrays=callback_arrays,
                guidance_cutoff=guidance_cutoff,
            ),
        )
        bars.update(task, stage="done")
    for warning in result.warnings:
        note(f"note: {warning}")
    if json:
        print_json(result.run)
        return
    say(f"{result.output}: steps {', '.join(str(step) for step in result.pictures)}")
    if compare_untiled:
        tiling = cast("dict[str, float]", result.run["vae_tiling"])
        say(
            f"in tiles of {vae_tile_px} px: PSNR {tiling['psnr_db']:.1f} dB from the whole, at "
            f"most {tiling['max_abs']:.1e} apart in -1 to 1"
        )


def _what_is_asked(
    prompts: dict[str, list[str] | None],
    *,
    prompt_weighting: bool,
    clip_skip: int,
    prompt_embeds: Path | None,
) -> "Prompts | PromptEmbeddings":
    """Prompts, or a file of embeddings in their place."""
    from triptych.sampling.prompt_encoding import Prompts
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
