"""The model that comes along: a very small SDXL that was trained, and draws what it is told.

Its weights lie in this package; `tools/train_demo_model` made them. It draws the scenes of
`triptych.scenes`: one shape on a background, as in "a small red circle at the left on a blue
background".
"""

import shutil
from pathlib import Path

from triptych.testing._new_folder import new_folder

DEMO_MODEL = Path(__file__).with_name("demo_model")
"""A checkpoint in diffusers' layout, with float16 weights, and training.json beside it, which says
how it was made. Read it where it lies, or take a copy with `demo_checkpoint`."""


def demo_checkpoint(folder: Path) -> Path:
    """Write the trained demo model as an SDXL checkpoint, in the layout of diffusers.

    Pictures are of 128 x 128 pixels; 20 steps and guidance 5 are what it was judged with. The
    folder appears whole or not at all.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     folder = demo_checkpoint(Path(parent) / "demo")
        ...     (folder / "model_index.json").is_file()
        True

    Args:
        folder: where to write; must be absent or empty. Its parents are made.

    Returns:
        `folder`.

    Raises:
        UsageError: `folder` is a file, or holds something.
    """
    with new_folder(folder) as scratch:
        shutil.copytree(DEMO_MODEL, scratch / "checkpoint")
    return folder
