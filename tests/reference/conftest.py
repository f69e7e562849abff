"""diffusers' own pipeline on the tiny checkpoint, to stand beside."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline


@pytest.fixture(scope="session")
def pipeline(checkpoint: Path) -> StableDiffusionXLPipeline:
    """The checkpoint in float32 on the CPU. A call leaves nothing behind that the next one sees."""
    loaded = StableDiffusionXLPipeline.from_pretrained(checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded
