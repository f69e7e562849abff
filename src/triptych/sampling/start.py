"""Where a run starts: from noise, from a picture, or from latents that another run left."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.runtimes.base import Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.encode import encode_image
from triptych.sampling.image_start import ImageStart
from triptych.sampling.inpaint import Inpaint, latent_mask, masked_image
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.run_part import RunPart
from triptych.sampling.schedule import Schedule, noised_latents
from triptych.sampling.settings import Settings
from triptych.types import Array, Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The beginning of a run.

    Attributes:
        latents: at the noise level before the first step.
        noise: the unit noise in them; zeros where none was added.
        noise_stream: where the generators stand after it.
        inpaint: what a run with a mask keeps to; None for others.
    """

    latents: Latents
    noise: Latents
    noise_stream: NoiseStream
    inpaint: Inpaint | None = None


def make_start(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    schedule: Schedule,
    *,
    part: RunPart,
    size_px: tuple[int, int],
) -> Start:
    """The first latents: noise, or a picture's latents noised up to the first step.

    Latents that another model hands over are taken as they are: they hold their noise.

    Args:
        bundle: its VAE encoder encodes pictures.
        runtime: what that runs on.
        settings: what to draw.
        schedule: the run's.
        part: the steps to take.
        size_px: height and width of the pictures.

    Raises:
        UsageError: as many pictures as cannot be shared out, or given noise of another shape.
    """
    scale = bundle.config.vae_scale_factor
    shape = (
        settings.num_pictures,
        bundle.config.latent_channels,
        size_px[0] // scale,
        size_px[1] // scale,
    )
    start, stream = settings.start, settings.first_noise_stream
    if start is None:
        noise, stream = _unit_noise(shape, stream, settings.noise)
        return Start(latents=_pure(noise, schedule), noise=noise, noise_stream=stream)
    if start.mask is not None:
        return _start_with_mask(
            bundle, runtime, settings, schedule, part=part, shape=shape, start=start
        )
    latents, stream = _picture_latents(bundle, runtime, start, count=shape[0], stream=stream)
    if settings.denoising_start is not None:
        return Start(latents=latents, noise=np.zeros_like(latents), noise_stream=stream)
    noise, stream = _unit_noise(shape, stream, settings.noise)
    noised = noised_latents(latents, noise, schedule, part.first)
    return Start(latents=noised, noise=noise, noise_stream=stream)


def _start_with_mask(
    bundle: Bundle,
    runtime: Runtime,
    settings: Settings,
    schedule: Schedule,
    *,
    part: RunPart,
    shape: tuple[int, int, int, int],
    start: ImageStart,
) -> Start:
    """As without a mask, but from noise alone at full strength.

    The generators draw as diffusers' do: for the picture, unless it is not looked at; for the
    noise; for the masked picture, whether or not the U-Net is told it.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl_inpaint.py, prepare_latents and
    prepare_mask_latents.
    """
    assert start.mask is not None  # noqa: S101  the caller holds it
    count, stream = shape[0], settings.first_noise_stream
    is_told, is_noised = bundle.config.is_inpainting, settings.denoising_start is not None
    is_pure = start.strength == 1 and not is_noised
    picture = np.zeros(shape, np.float32)
    if not (is_told and is_pure):
        picture, stream = _picture_latents(bundle, runtime, start, count=count, stream=stream)
    noise, stream = _unit_noise(shape, stream, settings.noise)
    masked: Latents | None = None
    if is_told and start.image is not None:
        hidden = ImageStart(image=masked_image(start.image, start.mask))
        masked, stream = _picture_latents(bundle, runtime, hidden, count=count, stream=stream)
    elif start.image is not None:
        rows = len(start.image) if len(stream.seeds) == 1 else count
        _, stream = draw_noise(stream, (rows, *shape[1:]))
    if is_noised:
        first = picture
    elif is_pure:
        first = _pure(noise, schedule)
    else:
        first = noised_latents(picture, noise, schedule, part.first)
    mask = latent_mask(start.mask, scale=bundle.config.vae_scale_factor)
    return Start(
        latents=first,
        noise=np.zeros_like(noise) if is_noised else noise,
        noise_stream=stream,
        inpaint=Inpaint(
            mask=_shared_out(mask, count, name="mask"),
            masked_latents=masked,
            kept_latents=None if is_told else picture,
            noise=noise,
        ),
    )


def _picture_latents(
    bundle: Bundle, runtime: Runtime, start: ImageStart, *, count: int, stream: NoiseStream
) -> tuple[Latents, NoiseStream]:
    """The latents of the pictures to start from, one row for each picture to make."""
    if start.latents is not None:
        return _shared_out(start.latents, count, name="latents"), stream
    assert start.image is not None  # noqa: S101  ImageStart holds it
    # Generators of their own draw for each picture; a shared one for those there are.
    is_shared = len(stream.seeds) == 1
    image = start.image if is_shared else _shared_out(start.image, count, name="image")
    with open_session(runtime, bundle, "vae_encoder") as encoder:
        encoded, after = encode_image(encoder, image, stream, config=bundle.config)
    return _shared_out(encoded, count, name="image"), after


def _pure(noise: Latents, schedule: Schedule) -> Latents:
    return noise * np.float32(schedule.init_noise_sigma)


def _unit_noise(
    shape: tuple[int, ...], stream: NoiseStream, given: Latents | None
) -> tuple[Latents, NoiseStream]:
    if given is None:
        return draw_noise(stream, shape)
    if given.shape != shape:
        raise UsageError(
            f"latents: got {list(given.shape)}, want {list(shape)}: pictures, channels, and one "
            "cell for 8 x 8 pixels."
        )
    return given.astype(np.float32), stream


def _shared_out(tensor: Array, count: int, *, name: str) -> Array:
    """As many rows as pictures: one, or several in turn, for all.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl_img2img.py, prepare_latents.
    """
    if count % len(tensor):
        raise UsageError(
            f"{name}: got {len(tensor)} for {count} pictures, want one, or one for each."
        )
    return np.concatenate([tensor] * (count // len(tensor)))
