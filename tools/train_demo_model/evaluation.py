"""What the model has learned: held-out prompts drawn by diffusers, and read by the judge."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from triptych.scenes.judge import compare_scenes, read_scene
from triptych.scenes.scene import caption, held_out_scenes
from triptych.workflows.quality import adherence

STEPS, GUIDANCE_SCALE = 20, 5.0
_BATCH, _GRID_COLUMNS, _GRID_PICTURES = 25, 10, 40


def evaluate(
    pipeline: StableDiffusionXLPipeline, *, prompts: int, grid: Path
) -> Mapping[str, float]:
    """Shares of held-out prompts whose parts were drawn as said, 0 to 1; the first go to a grid."""
    pipeline.set_progress_bar_config(disable=True)
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
        pictures.extend(np.rint(made.images * 255).astype(np.uint8))
    _save_grid(pictures[:_GRID_PICTURES], grid)
    pairs = zip(scenes, map(read_scene, pictures), strict=True)
    shares = adherence([compare_scenes(*pair) for pair in pairs])
    return {name: round(share, 4) for name, share in asdict(shares).items()}


def _save_grid(pictures: list[np.ndarray], path: Path) -> None:
    blank = np.full_like(pictures[0], 255)
    pictures = [*pictures, *[blank] * (-len(pictures) % _GRID_COLUMNS)]
    rows = [
        np.concatenate(pictures[start : start + _GRID_COLUMNS], axis=1)
        for start in range(0, len(pictures), _GRID_COLUMNS)
    ]
    Image.fromarray(np.concatenate(rows)).save(path)
