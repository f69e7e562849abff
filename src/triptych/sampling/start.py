"""Where a run starts: from noise, from a picture, or from latents that another run left."""

from dataclasses import dataclass
from typing import final

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.runtimes.base import Runtime
from triptych.runtimes.checked import open_session
from triptych.sampling.encode import encode_image
from triptych.sampling.noise import NoiseStream, draw_noise
from triptych.sampling.run_part import RunPart
from triptych.sampling.schedule import Schedule, noised_latents
from triptych.types import Array, ImageFloats, Latents


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStart:
    """A picture to start from instead of noise alone; or its latents.

    Attributes:
        image: pictures in -1 to 1, one for all or one for each; None where latents are given.
        latents: scaled, as a run leaves them; None where pictures are given.
        strength: how much is made anew, 0 to 1. Counts for nothing with `denoising_start`.
    """

    image: ImageFloats | None = None
    latents: Latents | None = None
    strength: float = 0.3

    def __post_init__(self) -> None:
        """Refuse both, and neither.

        Raises:
            UsageError: as said.
        """
        if (self.image is None) == (self.latents is None):
            raise UsageError("start: got both or none of image and latents, want one of them.")

    def size_px(self, *, scale: int) -> tuple[int, int]:
        """Height and width of the pictures; `scale` is image pixels for one latent cell.

        Raises:
            UsageError: an edge is not divisible by `scale`.
        """
        if self.latents is not None:
            return self.latents.shape[2] * scale, self.latents.shape[3] * scale
        assert self.image is not None  # noqa: S101  __post_init__ holds it
        height_px, width_px = self.image.shape[2:]
        if height_px % scale or width_px % scale:
            raise UsageError(
                f"image: got {height_px} x {width_px} px, want edges divisible by {scale}. "
                "Crop or resize it."
            )
        return height_px, width_px


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The beginning of a run.

    Attributes:
        latents: at the noise level before the first step.
        noise: the unit noise in them; zeros where none was added.
        noise_stream: where the generators stand after it.
    """

    latents: Latents
    noise: Latents
    noise_stream: NoiseStream


def start_from_noise(
    shape: tuple[int, int, int, int],
    schedule: Schedule,
    *,
    seeds: tuple[int, ...],
    given: Latents | None,
) -> Start:
    """Pure noise at the highest level of the schedule.

    Args:
        shape: of the latents.
        schedule: the run's.
        seeds: one for the whole batch, or one a picture.
        given: unit noise instead of a seed's; the generators then stand where they begin.

    Raises:
        UsageError: the given noise has another shape.
    """
    noise, stream = _unit_noise(shape, NoiseStream(seeds=seeds), given)
    return Start(
        latents=noise * np.float32(schedule.init_noise_sigma), noise=noise, noise_stream=stream
    )


def start_from_image(
    bundle: Bundle,
    runtime: Runtime,
    start: ImageStart,
    schedule: Schedule,
    *,
    part: RunPart,
    count: int,
    seeds: tuple[int, ...],
    given: Latents | None,
    is_noised: bool,
) -> Start:
    """A picture's latents, noised up to the first step; or as they are, where they hold noise.

    Args:
        bundle: its VAE encoder encodes pictures.
        runtime: what that runs on.
        start: the pictures or latents.
        schedule: the run's.
        part: the steps to take.
        count: pictures to make.
        seeds: one for the whole batch, or one a picture. The posterior is drawn first.
        given: unit noise instead of a seed's.
        is_noised: the latents are at the noise level of the first step already.

    Raises:
        UsageError: as many pictures as cannot be shared out, or noise of another shape.
    """
    stream = NoiseStream(seeds=seeds)
    if start.latents is not None:
        latents = _shared_out(start.latents, count, name="latents")
    else:
        assert start.image is not None  # noqa: S101  ImageStart holds it
        # Generators of their own draw for each picture; a shared one for those there are.
        image = _shared_out(start.image, count, name="image") if len(seeds) > 1 else start.image
        with open_session(runtime, bundle, "vae_encoder") as encoder:
            encoded, stream = encode_image(encoder, image, stream, config=bundle.config)
        latents = _shared_out(encoded, count, name="image")
    if is_noised:
        return Start(latents=latents, noise=np.zeros_like(latents), noise_stream=stream)
    noise, stream = _unit_noise(latents.shape, stream, given)
    noised = noised_latents(latents, noise, schedule, part.first)
    return Start(latents=noised, noise=noise, noise_stream=stream)


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
