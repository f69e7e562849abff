"""The options of `sample` alone, and what they mean together."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from triptych.errors import UsageError

if TYPE_CHECKING:
    from triptych.sampling.callbacks import StepCallback
    from triptych.workflows.callback_import import CallbackArrays
    from triptych.workflows.sample_request import ImageFiles, RefinerRequest

Pair: TypeAlias = tuple[int, int]

SeedOption: TypeAlias = Annotated[
    list[int] | None,
    typer.Option("--seed", help="One for all, or repeated: one a picture. Default: 0."),
]
SaveStepsOption: TypeAlias = Annotated[
    str, typer.Option("--save-steps", metavar="1,4,8", help="Default: the last.")
]
HeightOption: TypeAlias = Annotated[
    int | None, typer.Option("--height-px", help="Divisible by 8. Default: as trained.")
]
WidthOption: TypeAlias = Annotated[
    int | None, typer.Option("--width-px", help="Divisible by 8. Default: as trained.")
]
AspectRatioOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--aspect-ratio",
        metavar="16:9",
        help="Width to height, for the nearest size that SDXL was trained at.",
    ),
]
LatentsOption: TypeAlias = Annotated[
    Path | None, typer.Option("--latents", help="Unit noise from a .safetensors or .npy file.")
]

VaeTileOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--vae-tile-px",
        metavar="N",
        help="Show the VAE tiles of N pixels, a multiple of 32, faded into each other as "
        "diffusers' enable_vae_tiling does: its memory is then a tile's.",
    ),
]
CompareUntiledOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--compare-untiled",
        help="Decode the last picture whole, too, and say how far the tiled one is from it.",
    ),
]

GuidanceRescaleOption: TypeAlias = Annotated[
    float,
    typer.Option(
        "--guidance-rescale", min=0, max=1, help="Against over-exposure: phi of arXiv:2305.08891."
    ),
]
GuidanceIntervalOption: TypeAlias = Annotated[
    tuple[float, float],
    typer.Option(
        "--guidance-interval", metavar="FROM TO", help="Guide this part of the run only, 0 to 1."
    ),
]
GuidanceScheduleOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--guidance-schedule",
        metavar="7.5,6,...",
        help="A scale for each step, instead of --guidance-scale.",
    ),
]
GuidanceCutoffOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--guidance-cutoff", help="Turn guidance off after this part of the run."),
]

ImageOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--image", help="A picture to start from, instead of noise alone."),
]
StrengthOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--strength",
        help="How much of --image is made anew, 0 to 1. Default: 0.3, with --mask 0.9999.",
    ),
]
MaskOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--mask", help="What of --image is made anew: white is, black is kept."),
]
PaddingMaskCropOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--padding-mask-crop",
        metavar="PX",
        help="Make only the part around the mask, with so much about it, and put it back.",
    ),
]
DenoisingEndOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--denoising-end", help="Stop after this part of the schedule, 0 to 1."),
]

RefinerOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--refiner", help="A refiner's bundle or checkpoint, that goes on from this one."),
]
DenoisingSplitOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--denoising-split",
        help="Hand over to --refiner after this part of the schedule. Default: refine what is "
        "finished.",
    ),
]
RefinerStrengthOption: TypeAlias = Annotated[
    float, typer.Option("--refiner-strength", help="How much --refiner makes anew of it, 0 to 1.")
]
RefinerRuntimeOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--refiner-runtime", metavar="NAME", help="Engine. Default: as the first."),
]
AestheticScoreOption: TypeAlias = Annotated[
    float, typer.Option("--aesthetic-score", help="Micro-conditioning of refiners.")
]
NegativeAestheticScoreOption: TypeAlias = Annotated[
    float, typer.Option("--negative-aesthetic-score", help="See --aesthetic-score.")
]

OriginalSizeOption: TypeAlias = Annotated[
    Pair | None, typer.Option("--original-size", help="Micro-conditioning: height width.")
]
CropOption: TypeAlias = Annotated[
    Pair, typer.Option("--crop", help="Micro-conditioning: top left.")
]
TargetSizeOption: TypeAlias = Annotated[
    Pair | None, typer.Option("--target-size", help="Micro-conditioning: height width.")
]
NegativeOriginalSizeOption: TypeAlias = Annotated[
    Pair | None, typer.Option("--negative-original-size", help="With --negative-target-size.")
]
NegativeCropOption: TypeAlias = Annotated[Pair, typer.Option("--negative-crop")]
NegativeTargetSizeOption: TypeAlias = Annotated[
    Pair | None, typer.Option("--negative-target-size", help="See --negative-original-size.")
]

CallbackOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--callback",
        metavar="MODULE:FUNCTION",
        help="Called after every step, as diffusers' callback_on_step_end. May be repeated.",
    ),
]
CallbackTensorsOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--callback-tensors",
        metavar="latents,...",
        help="What callbacks are given that do not say so themselves.",
    ),
]


def image_files(
    *, image: Path | None, strength: float | None, mask: Path | None, padding_mask_crop: int | None
) -> "ImageFiles | None":
    """The files to start from; None where there are none.

    Raises:
        UsageError: what belongs to a picture is given without one.
    """
    from triptych.workflows.sample_request import ImageFiles

    if image is None:
        given = {"--strength": strength, "--mask": mask, "--padding-mask-crop": padding_mask_crop}
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option}: got {value} without --image, want both.")
        return None
    # diffusers' defaults, of its image-to-image and its inpainting pipeline
    usual = 0.3 if mask is None else 0.9999
    return ImageFiles(
        image=image,
        strength=usual if strength is None else strength,
        mask=mask,
        padding_mask_crop=padding_mask_crop,
    )


def refiner_request(
    *,
    refiner: Path | None,
    denoising_split: float | None,
    strength: float,
    runtime: str | None,
    variant: str | None,
) -> "RefinerRequest | None":
    """The second model; None where there is none.

    Raises:
        UsageError: a split without one.
    """
    from triptych.workflows.sample_request import RefinerRequest

    if refiner is None:
        if denoising_split is not None:
            raise UsageError(
                f"--denoising-split: got {denoising_split:g} without --refiner, want both. "
                "To stop early, give --denoising-end."
            )
        return None
    return RefinerRequest(
        bundle=refiner,
        denoising_split=denoising_split,
        strength=strength,
        runtime=runtime,
        variant=variant,
    )


def one_callback(
    names: list[str], tensors: str, *, arrays: "CallbackArrays", guidance_cutoff: float | None
) -> "StepCallback | None":
    """All that was asked for as one callback; None where nothing was."""
    from triptych.sampling.controllers import CallbackChain, GuidanceCutoff
    from triptych.workflows.callback_import import import_callback

    callbacks: list[StepCallback] = [import_callback(name, arrays=arrays) for name in names]
    if guidance_cutoff is not None:
        callbacks.append(GuidanceCutoff(cutoff_step_ratio=guidance_cutoff))
    given = [name.strip() for name in tensors.split(",")]
    return CallbackChain(callbacks, given=given) if callbacks else None


def aspect_ratio_from(text: str | None) -> float | None:
    """Width over height from 16:9 or 1.78.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text is None:
        return None
    width, colon, height = text.partition(":")
    try:
        return float(width) / (float(height) if colon else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"--aspect-ratio: got {text!r}, want one such as 16:9.") from error


def steps_from(text: str) -> tuple[int, ...]:
    """Step numbers from 1,4,8.

    Raises:
        typer.BadParameter: something in it is no number.
    """
    if not text:
        return ()
    try:
        return tuple(int(step) for step in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"got {text!r}, want step numbers with commas between, such as 1,4,8."
        ) from error
