"""Inputs worth trying a component on: what it meets in a real run, not uniform noise.

Random numbers in [0, 1) never reach the timesteps, sizes and magnitudes at which exports go
wrong; these do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from triptych.models.sdxl import SdxlConfig, component_spec
from triptych.types import Array, ComponentName, ImageFloats, InputIds, TensorMap

TIMESTEPS = (999.0, 500.5, 1.0)
"""First, middle and last of the training schedule. 500.5 is lost by an integer input."""

FIRST_SIGMA = 14.6
"""What the latents of a run's first steps are like, in standard deviations: sigma_max of SDXL's
schedule (scaled_linear betas from 0.00085 to 0.012 over 1000 steps)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One feed with a name for reports.

    Attributes:
        name: what is special about it.
        feed: the component's inputs, by their names in the spec.
    """

    name: str
    feed: TensorMap


def component_cases(
    component: ComponentName,
    config: SdxlConfig,
    *,
    input_ids: InputIds,
    timesteps: Sequence[float] = TIMESTEPS,
    fixed_axes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Iterator[Case]:
    """Feeds for one component: two shapes, two batch sizes, the ends of its input range.

    A graph of fixed shapes gets its one size, and once and twice its batch.

    Args:
        component: which one.
        config: the model's sizes.
        input_ids: tokenised prompts for that text encoder; unused by the others.
        timesteps: where on the training schedule the U-Net is tried.
        fixed_axes: the `batch`, `height` and `width` that it was built for, in latent cells.
        seed: of the Gaussian tensors.
    """
    random = np.random.default_rng(seed)
    axes = fixed_axes or {}
    match component:
        case "text_encoder" | "text_encoder_2":
            yield from _text_cases(input_ids)
        case "unet":
            yield from _unet_cases(config, timesteps, axes, random)
        case "vae_encoder" | "vae_decoder":
            yield from _vae_cases(component, config, axes, random)
        case "preview_decoder":
            yield from _preview_cases(config, axes, random)


def _text_cases(input_ids: InputIds) -> Iterator[Case]:
    for row in range(len(input_ids)):
        yield Case(name=f"prompt {row}", feed={"input_ids": input_ids[row : row + 1]})
    if len(input_ids) > 1:
        yield Case(name=f"batch {len(input_ids)}", feed={"input_ids": input_ids})


def _unet_cases(
    config: SdxlConfig,
    timesteps: Sequence[float],
    fixed_axes: Mapping[str, int],
    random: np.random.Generator,
) -> Iterator[Case]:
    # An odd edge takes the U-Net's upsample-to-size path; a non-square one catches swapped axes.
    sizes = [(1, 8, 8)] * len(timesteps) + [(2, 9, 13)]
    for size, timestep in zip(sizes, [*timesteps, timesteps[0]], strict=True):
        batch, height, width = _built_for(size, fixed_axes)
        feed = unet_feed(config, batch=batch, height=height, width=width, random=random)
        name = f"t={timestep:g} batch {batch} latents {height}x{width}"
        yield Case(name=name, feed={**feed, "timestep": np.array(timestep, np.float32)})


def _built_for(size: tuple[int, int, int], fixed_axes: Mapping[str, int]) -> tuple[int, int, int]:
    """A size of batch, height and width that a graph can run, as near to the wish as it allows."""
    batch, height, width = size
    return (
        batch * fixed_axes.get("batch", 1),
        fixed_axes.get("height", height),
        fixed_axes.get("width", width),
    )


def unet_feed(
    config: SdxlConfig, *, batch: int, height: int, width: int, random: np.random.Generator
) -> dict[str, Array]:
    """A U-Net feed at timestep 999 with unit-variance sample and embeddings and real time_ids."""
    scale = config.vae_scale_factor
    size = [height * scale, width * scale]
    # Base: original size, crop, target size. Refiner: original size, crop, aesthetic score 6.0
    # (diffusers pipeline_stable_diffusion_xl_img2img.py, _get_add_time_ids).
    ids = [*size, 0, 0, *size] if config.num_time_ids == 6 else [*size, 0, 0, 6.0]
    axes = {"batch": batch, "height": height, "width": width}
    feed: dict[str, Array] = {
        spec.name: random.standard_normal(
            [axes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        ).astype(spec.dtype)
        for spec in component_spec("unet", config).inputs
        if spec.name not in ("timestep", "time_ids")
    }
    feed["timestep"] = np.array(999.0, np.float32)
    feed["time_ids"] = np.tile(np.array(ids, np.float32), (batch, 1))
    return feed


def smooth_picture(height_px: int, width_px: int) -> ImageFloats:
    """One picture in -1 to 1 with a gradient in each colour, [1, 3, height_px, width_px]."""
    down = np.linspace(-0.9, 0.9, height_px, dtype=np.float32)[:, np.newaxis]
    right = np.linspace(-0.9, 0.9, width_px, dtype=np.float32)[np.newaxis]
    return np.stack([down + 0 * right, right + 0 * down, down * right])[np.newaxis]


def _vae_cases(
    component: ComponentName,
    config: SdxlConfig,
    fixed_axes: Mapping[str, int],
    random: np.random.Generator,
) -> Iterator[Case]:
    scale = config.vae_scale_factor
    for size in ((1, 8, 8), (2, 5, 9)):
        batch, height, width = _built_for(size, fixed_axes)
        name = f"batch {batch} latents {height}x{width}"
        if component == "vae_decoder":
            # Unscaled latents of a finished picture have about unit variance over scaling_factor.
            shape = (batch, config.latent_channels, height, width)
            latents = random.standard_normal(shape) / config.scaling_factor
            yield Case(name=name, feed={"latents": latents.astype(np.float32)})
        else:
            shape = (batch, 3, height * scale, width * scale)
            image = np.clip(random.standard_normal(shape) * 0.5, -1, 1)
            yield Case(name=name, feed={"image": image.astype(np.float32)})


def _preview_cases(
    config: SdxlConfig, fixed_axes: Mapping[str, int], random: np.random.Generator
) -> Iterator[Case]:
    """Finished latents at two sizes, and those of a run's first step."""
    for size, sigma in (((1, 8, 8), 1.0), ((2, 5, 9), 1.0), ((1, 8, 8), FIRST_SIGMA)):
        batch, height, width = _built_for(size, fixed_axes)
        shape = (batch, config.latent_channels, height, width)
        latents = sigma * random.standard_normal(shape)
        name = f"batch {batch} latents {height}x{width} sigma {sigma:g}"
        yield Case(name=name, feed={"latents": latents.astype(np.float32)})
