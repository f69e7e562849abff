"""Pictures with captions and micro-conditioning. Scenes that are held out are never drawn here."""

from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from PIL import Image

from triptych.scenes.drawing import PICTURE_PX, draw, random_variation
from triptych.scenes.scene import Scene, caption, is_held_out, iter_scenes
from triptych.types import ImagePixels, Picture

TimeIds: TypeAlias = tuple[int, int, int, int, int, int]
"""Original height and width, crop from the top and from the left, target height and width."""

WHOLE: TimeIds = (PICTURE_PX, PICTURE_PX, 0, 0, PICTURE_PX, PICTURE_PX)

_WHOLE_ONES, _BLURRED_ONES, _CROPPED_ONES = 4, 2, 2
"""Pictures of every scene."""

_SMALLEST_PX, _SMALLEST_CROPPED_PX, _LARGEST_CROPPED_PX = 16, 144, 224
_PARTIAL_SHARE = 0.25
"""Captions that leave something out, so that short prompts and negative ones mean something."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What is learned from.

    Attributes:
        scenes: what each picture shows.
        pictures: uint8 [examples, 128, 128, 3].
        time_ids: micro-conditioning of each.
    """

    scenes: tuple[Scene, ...]
    pictures: ImagePixels
    time_ids: tuple[TimeIds, ...]

    def blurred(self) -> np.ndarray:
        """Numbers of the pictures that were smaller once."""
        return np.flatnonzero(self._original_heights() < PICTURE_PX)

    def cropped(self) -> np.ndarray:
        """Numbers of the pictures that are parts of larger ones."""
        return np.flatnonzero(self._original_heights() > PICTURE_PX)

    def whole(self) -> np.ndarray:
        """Numbers of the pictures that are as they were drawn."""
        return np.flatnonzero(self._original_heights() == PICTURE_PX)

    def _original_heights(self) -> np.ndarray:
        return np.array([height for height, *_ in self.time_ids])


def make_examples(*, seed: int) -> Examples:
    """Every scene of training several times."""
    generator = np.random.default_rng(seed)
    scenes = [scene for scene in iter_scenes() if not is_held_out(scene)]
    rows: list[tuple[Scene, Picture, TimeIds]] = []
    for scene in scenes:
        rows.extend(
            (scene, draw(scene, random_variation(generator)), WHOLE) for _ in range(_WHOLE_ONES)
        )
        for change, count in ((_of_low_resolution, _BLURRED_ONES), (_cropped, _CROPPED_ONES)):
            rows.extend(
                (scene, *change(draw(scene, random_variation(generator)), generator))
                for _ in range(count)
            )
    return Examples(
        scenes=tuple(scene for scene, _, _ in rows),
        pictures=np.stack([picture for _, picture, _ in rows]),
        time_ids=tuple(ids for _, _, ids in rows),
    )


def partial_caption(scene: Scene, generator: np.random.Generator) -> str:
    """The caption, or one time in four with parts of it left out."""
    if generator.random() >= _PARTIAL_SHARE:
        return caption(scene)
    words = caption(scene).split()
    article, size, color, shape = words[:4]
    on = words.index("on")
    keeps = generator.random(5) < 0.5
    kept = [article]
    kept += [size] if keeps[0] else []
    kept += [color] if keeps[1] else []
    kept += [shape] if keeps[2] else ["shape"]
    kept += words[4:on] if keeps[3] else []
    kept += words[on:] if keeps[4] else []
    return " ".join(kept)


def _of_low_resolution(picture: Picture, generator: np.random.Generator) -> tuple[Picture, TimeIds]:
    """A picture as if it had been smaller, and enlarged; as many of 16 to 32 as of 64 to 128."""
    size = int(np.exp2(generator.uniform(*np.log2([_SMALLEST_PX, PICTURE_PX]))))
    small = Image.fromarray(picture).resize((size, size), Image.Resampling.BOX)
    blurred = small.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
    return np.asarray(blurred), (size, size, 0, 0, PICTURE_PX, PICTURE_PX)


def _cropped(picture: Picture, generator: np.random.Generator) -> tuple[Picture, TimeIds]:
    """A part of an enlarged picture, as SDXL's training crops them (arXiv:2307.01952, 2.2).

    Half of the parts begin at an edge: what moves little teaches little.
    """
    size = int(generator.integers(_SMALLEST_CROPPED_PX, _LARGEST_CROPPED_PX + 1))
    where = np.clip(generator.uniform(-0.5, 1.5, 2), 0, 1)
    top, left = (round(float(share) * (size - PICTURE_PX)) for share in where)
    large = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    part = large.crop((left, top, left + PICTURE_PX, top + PICTURE_PX))
    return np.asarray(part), (size, size, top, left, PICTURE_PX, PICTURE_PX)
