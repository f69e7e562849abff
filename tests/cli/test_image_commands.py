"""Starting from a picture, and steering, on the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image

from triptych.testing import tiny_checkpoint

pytestmark = pytest.mark.slow


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sample(triptych: Cli) -> Cli:
    """A run in this process, into a folder."""

    def run(bundle: Path, *options: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        return triptych("sample", bundle, "--prompt", "a cat", "--output", folder / "out", *options)

    return run


def sample_beside(
    bundle: Path, *options: str | Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    """A run in a folder of its own modules, as a process of its own: what is imported stays."""
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


def test_a_picture_is_made_anew_in_part(
    sample: Cli, picture: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    options = ("--image", picture, "--strength", "0.5", "--num-inference-steps", "6")
    done = sample(onnx_folder, *options, "--save-steps", "1,3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["start"]["kind"] == "image"
    assert (run["start"]["first_step"], run["start"]["num_steps"]) == (3, 3)
    assert (run["height_px"], run["width_px"]) == (72, 64)
    assert (tmp_path / "out" / "step_03.png").is_file()


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    levels = np.zeros((75, 64), np.uint8)
    levels[20:50, 16:40] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(levels).save(path)
    return path


def test_a_part_of_a_picture_is_made_anew(
    sample: Cli, picture: Path, mask: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    done = sample(
        *(onnx_folder, "--image", picture, "--mask", mask, "--padding-mask-crop", "8"),
        *("--num-inference-steps", "3", "--previews", "linear", "--json"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["start"]["kind"] == "image and mask"
    assert run["start"]["strength"] == 0.9999
    assert run["start"]["num_steps"] == 2
    with Image.open(tmp_path / "out" / "final.png") as made:
        assert made.size == (64, 75)


def test_a_refiner_goes_on(sample: Cli, onnx_folder: Path, tmp_path: Path) -> None:
    refiner = tiny_checkpoint(tmp_path / "refiner", seed=1, kind="refiner")
    done = sample(
        *(onnx_folder, "--refiner", refiner, "--denoising-split", "0.5", "--json"),
        *("--num-inference-steps", "4", "--aspect-ratio", "2:1", "--aesthetic-score", "7"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["refiner"]["time_ids"][1][-1] == 7
    assert (run["height_px"], run["width_px"]) == (88, 176)
    assert run["start"]["num_steps"] + run["refiner"]["start"]["num_steps"] == 4


def test_guidance_and_noise_levels_as_they_are_asked_for(
    sample: Cli, onnx_folder: Path, tmp_path: Path
) -> None:
    done = sample(
        *(onnx_folder, "--num-inference-steps", "4", "--json", "--guidance-rescale", "0.7"),
        *("--guidance-interval", "0.25", "0.75", "--clip-skip", "1"),
        *("--sigmas", "edm", "--sigma-min", "0.1", "--sigma-max", "10", "--rho", "1"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["guidance_scales"] == [1.0, 5.0, 5.0, 1.0]
    assert run["guidance_rescale"] == 0.7
    assert np.allclose(run["scheduler"]["sigmas"], [10, 6.7, 3.4, 0.1, 0])


NEEDS_AN_IMAGE = "without --image, want both"


@pytest.mark.usefixtures("picture")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--image", "@picture", "--strength", "0.5", "--num-inference-steps", "1"), "leaves none"),
        (("--image", "@picture", "--strength", "0.04", "--save-steps", "3"), "want 1 to 2"),
        (("--image", "@picture", "--height-px", "64"), "want both or neither"),
        (("--image", "@picture", "--strength", "1.5"), "want 0 to 1"),
        (("--image", "@picture", "--mask", "@small"), "as the image"),
        (("--image", "@small", "--mask", "@black"), "nothing to repaint"),
        (("--image", "@missing"), "missing.png"),
        (("--mask", "@picture"), NEEDS_AN_IMAGE),
        (("--strength", "0.5"), NEEDS_AN_IMAGE),
        (("--denoising-split", "0.8"), "without --refiner"),
        (("--save-steps", "51"), "want 1 to 50"),
        (("--scheduler", "ddim", "--sigma-values", "3,1,0"), "takes only num_inference_steps"),
        (("--scheduler", "no-such"), "want one of euler"),
        (("--rho", "3"), "without --sigmas edm"),
        (("--guidance-schedule", "5,4"), "want 50"),
        (("--guidance-cutoff", "0.4", "--guidance-interval", "0", "0.5"), "want one of them"),
        (("--aspect-ratio", "wide"), "such as 16:9"),
        (("--callback", "no_such_module:f"), "cannot import no_such_module"),
    ],
)
def test_wishes_that_cannot_be(
    sample: Cli, options: tuple[str, ...], told: str, onnx_folder: Path, tmp_path: Path
) -> None:
    Image.new("L", (32, 32), 255).save(tmp_path / "small.png")
    Image.new("L", (32, 32), 0).save(tmp_path / "black.png")
    named = [
        str(tmp_path / f"{option[1:]}.png") if option.startswith("@") else option
        for option in options
    ]
    done = sample(onnx_folder, *named, folder=tmp_path)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial*"))


CALLBACKS = """
def forgets(pipe, index, timestep, callback_kwargs):
    pass

def invents(pipe, index, timestep, callback_kwargs):
    return {"lanterns": callback_kwargs["latents"]}

def shrinks(pipe, index, timestep, callback_kwargs):
    return {"latents": callback_kwargs["latents"][..., 1:]}

def stumbles(pipe, index, timestep, callback_kwargs):
    raise RuntimeError("out of lamp oil")

def breaks(pipe, index, timestep, callback_kwargs):
    callback_kwargs["latents"][:] = float("nan")
    return callback_kwargs
"""


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("forgets", 2, "return callback_kwargs"),
        ("invents", 2, "got lanterns, want some of latents"),
        ("shrinks", 2, "want [1, 4, 16, 16]"),
        ("stumbles", 2, "at step 0: it raised RuntimeError: out of lamp oil"),
        ("breaks", 1, "NaN or infinite"),
    ],
)
def test_bad_callbacks_leave_nothing(
    name: str, code: int, told: str, onnx_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CALLBACKS)
    steps = ("--num-inference-steps", "2")
    done = sample_beside(onnx_folder, *steps, "--callback", f"mine:{name}", folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial*"))


def test_a_callback_beside_the_command(onnx_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def zero(pipe, index, timestep, callback_kwargs):\n"
        "    callback_kwargs['latents'] = callback_kwargs['latents'] * 0\n"
        "    return callback_kwargs\n"
        "def forgets(pipe, index, timestep, callback_kwargs):\n"
        "    pass\n"
    )
    steps = ("--num-inference-steps", "2", "--guidance-cutoff", "0.5")
    done = sample_beside(onnx_folder, *steps, "--callback", "mine:zero", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = sample_beside(
        onnx_folder, *steps, "--callback", "mine:forgets", "--overwrite", folder=tmp_path
    )
    assert done.returncode == 2
    assert "return callback_kwargs" in done.stderr
    assert (tmp_path / "out" / "final.png").is_file()  # the run before is whole
