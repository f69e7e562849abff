"""What `sample` is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

from triptych.runtimes.base import RuntimeSettings
from triptych.sampling.observers import PreviewOf
from triptych.sampling.settings import Settings

PreviewDecoder: TypeAlias = Literal["linear", "vae", "preview-decoder"]
"""linear: one pixel a latent cell, at no cost. vae: the real decoder. preview-decoder: the small
one that a bundle may have."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """A picture to start from.

    Attributes:
        image: its size is the picture's, unless the bundle makes only one.
        strength: how much of it is made anew, 0 to 1; counts for nothing with `denoising_start`.
        mask: what of it is made anew: white is, black is kept; None makes all.
        padding_mask_crop: make only the part around the mask, with so many pixels about it, and
            put it back into the picture; None makes the whole.
    """

    image: Path
    strength: float = 0.3
    mask: Path | None = None
    padding_mask_crop: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RefinerRequest:
    """A second model that goes on where the first has stopped, or over its picture once more.

    It takes the first one's prompts and settings. Where its bundle lacks a text encoder or a VAE,
    it takes the first one's too.

    Attributes:
        bundle: a refiner's bundle, or checkpoint.
        denoising_split: share of the training schedule that is the first model's: an ensemble of
            two denoisers. None refines the finished latents: SDEdit.
        strength: how much is made anew of finished latents, 0 to 1.
        runtime: the engine; None takes the first model's where it reads the refiner's format.
        variant: the weight variant, for a checkpoint.
    """

    bundle: Path
    denoising_split: float | None = None
    strength: float = 0.3
    runtime: str | None = None
    variant: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What to sample, and where to put it.

    Attributes:
        bundle: a bundle, a folder made by optimum-cli, or a checkpoint.
        output: a folder to make.
        settings: what to draw.
        pictures: files to start from.
        refiner: a second model.
        save_steps: steps to save pictures of; empty saves the last.
        previews: decode a preview of every step with this; None makes none.
        preview_of: what they show.
        runtime: the engine; None takes the one that reads the bundle's format.
        runtime_settings: device, precision, threads.
        variant: the weight variant, for a checkpoint.
        vae_tile_px: edge of the tiles that the VAE sees, a multiple of 32; None shows it the whole.
        compare_untiled: decode the last picture whole besides, and say how far the tiled one is.
        prompt_cache: a folder where encoded prompts are kept and looked for; None keeps none.
        keep_loaded: keep every component open to the end, so that none is opened twice. Otherwise
            each is closed before the next is opened.
        verify: compare every file's hash with the manifest first.
        overwrite: replace an existing output folder.
    """

    bundle: Path
    output: Path
    settings: Settings
    pictures: ImageFiles | None = None
    refiner: RefinerRequest | None = None
    save_steps: Sequence[int] = ()
    previews: PreviewDecoder | None = None
    preview_of: PreviewOf = "denoised"
    runtime: str | None = None
    runtime_settings: RuntimeSettings
    variant: str | None = None
    vae_tile_px: int | None = None
    compare_untiled: bool = False
    prompt_cache: Path | None = None
    keep_loaded: bool = False
    verify: bool = True
    overwrite: bool = False
