"""What the model has learned: held-out prompts drawn, and read by the judge."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from triptych.scenes.judge import Agreement, compare_scenes, read_scene
from triptych.scenes.scene import caption, held_out_scenes

STEPS, GUIDANCE_SCALE = 20, 5.0
_BATCH, _GRID_COLUMNS, _GRID_ROWS = 25, 10, 4


@runtime_checkable
class Pipeline(Protocol):
    """StableDiffusionXLPipeline, as far as it is used here."""

    def __call__(self, **settings: object) -> object:
        """Draw."""
        ...


def evaluate(pipeline: Pipeline, *, prompts: int, grid: Path) -> Mapping[str, float]:
    """Shares of held-out prompts whose parts were drawn as said, 0 to 1; the first go to a grid."""
    scenes = held_out_scenes(prompts)
    pictures: list[np.ndarray] = []
    for start in range(0, len(scenes), _BATCH):
        batch = scenes[start : start + _BATCH]
        made = pipeline(
            prompt=[caption(scene) for scene in batch],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator("cpu").manual_seed(start + i) for i in range(len(batch))],
            output_type="np",
        )
        pictures.extend(np.rint(made.images * 255).astype(np.uint8))  # type: ignore[attr-defined]
    rights: Counter[str] = Counter()
    for scene, picture in zip(scenes, pictures, strict=True):
        agreement = compare_scenes(scene, read_scene(picture))
        rights.update(field.name for field in fields(Agreement) if getattr(agreement, field.name))
        rights["whole"] += agreement.is_whole
    rows = [
        np.concatenate(pictures[start : start + _GRID_COLUMNS], axis=1)
        for start in range(0, _GRID_COLUMNS * _GRID_ROWS, _GRID_COLUMNS)
        if start + _GRID_COLUMNS <= len(pictures)
    ]
    if rows:
        Image.fromarray(np.concatenate(rows)).save(grid)
    return {name: round(count / len(scenes), 4) for name, count in sorted(rights.items())}
