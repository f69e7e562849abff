"""Starting from a picture, and steering, on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def sample(bundle: Path, *options: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "triptych.cli", "sample", bundle, "--prompt", "a cat"),
        *("--output", folder / "out", *options),
    ]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        cwd=folder,
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    Image.fromarray(random.integers(0, 256, (75, 64, 3), np.uint8)).save(path)
    return path


def test_a_picture_is_made_anew_in_part(picture: Path, onnx_folder: Path, tmp_path: Path) -> None:
    options = ("--image", picture, "--strength", "0.5", "--num-inference-steps", "6")
    done = sample(onnx_folder, *options, "--save-steps", "1,3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["start"]["kind"] == "image"
    assert (run["start"]["first_step"], run["start"]["num_steps"]) == (3, 3)
    assert (run["height_px"], run["width_px"]) == (72, 64)
    assert (tmp_path / "out" / "step_03.png").is_file()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--strength", "0.5", "--num-inference-steps", "1"), "leaves none"),
        (("--strength", "0.5", "--num-inference-steps", "4", "--save-steps", "3"), "want 1 to 2"),
        (("--height-px", "64"), "want both or neither"),
    ],
)
def test_wishes_that_cannot_be(
    options: tuple[str, ...], told: str, picture: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    done = sample(onnx_folder, "--image", picture, *options, folder=tmp_path)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_callback_beside_the_command(onnx_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def zero(pipe, index, timestep, callback_kwargs):\n"
        "    callback_kwargs['latents'] = callback_kwargs['latents'] * 0\n"
        "    return callback_kwargs\n"
        "def forgets(pipe, index, timestep, callback_kwargs):\n"
        "    pass\n"
    )
    steps = ("--num-inference-steps", "2", "--guidance-cutoff", "0.5")
    done = sample(onnx_folder, *steps, "--callback", "mine:zero", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = sample(onnx_folder, *steps, "--callback", "mine:forgets", "--overwrite", folder=tmp_path)
    assert done.returncode == 2
    assert "return callback_kwargs" in done.stderr
    assert (tmp_path / "out" / "final.png").is_file()  # the run before is whole
