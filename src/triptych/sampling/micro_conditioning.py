"""SDXL's size conditioning: what a picture is said to be cut from, and how it looks to people."""

from dataclasses import dataclass
from typing import SupportsFloat, final

import numpy as np

from triptych.models.sdxl import SdxlConfig
from triptych.types import TimeIds


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MicroConditioning:
    """SDXL's size conditioning, in pixels, height before width.

    Attributes:
        original_size: of the imagined training picture; None takes the picture's.
        crop: top and left of its crop.
        target_size: of the picture asked for; None takes the picture's.
        negative_original_size: the same for the unconditional side, together with
            `negative_target_size`; otherwise it takes the positive one.
        negative_crop: top and left for the unconditional side.
        negative_target_size: see `negative_original_size`.
        aesthetic_score: for refiners, which take it instead of the target size.
        negative_aesthetic_score: the same for the unconditional side.
    """

    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crop: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5


def both_time_ids(
    sizes: MicroConditioning,
    picture_size: tuple[int, int],
    config: SdxlConfig,
    *,
    from_image: bool,
) -> tuple[TimeIds, TimeIds]:
    """The conditional and the unconditional side's, one row each.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl.py, __call__ 7, where negative sizes count
    only as a pair; pipeline_stable_diffusion_xl_img2img.py, _get_add_time_ids, where each counts
    for itself, and the negative crop in a refiner alone.
    """
    original, target = sizes.original_size or picture_size, sizes.target_size or picture_size
    negative_original = sizes.negative_original_size or original
    negative_target = sizes.negative_target_size or target
    if config.num_time_ids == 5:
        return (
            _row(*original, *sizes.crop, sizes.aesthetic_score),
            _row(*negative_original, *sizes.negative_crop, sizes.negative_aesthetic_score),
        )
    positive = _row(*original, *sizes.crop, *target)
    if from_image:
        return positive, _row(*negative_original, *sizes.crop, *negative_target)
    if sizes.negative_original_size is None or sizes.negative_target_size is None:
        return positive, positive
    return positive, _row(*negative_original, *sizes.negative_crop, *negative_target)


def _row(*ids: SupportsFloat) -> TimeIds:
    return np.array([[float(number) for number in ids]], np.float32)
