"""Every command in the README and the guides runs, in order, as a reader would type it.

Those of the README in processes of their own; the guides' in this one, which has its frameworks.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from triptych.testing import tiny_checkpoint, write_single_file

README = Path(__file__).parents[1] / "README.md"
FACTORS = (("A", (2, 32)), ("B", (32, 2)))
GUIDE = README.parent / "docs" / "sampling.md"

Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
Reader: TypeAlias = Callable[[Iterable[str]], None]


@pytest.fixture
def follow(triptych: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Runs the commands of a guide in a folder."""
    monkeypatch.chdir(tmp_path)

    def run(commands: Iterable[str]) -> None:
        for command in commands:
            name, *arguments = shlex.split(command)
            assert name == "triptych"
            done = triptych(*arguments)
            assert done.returncode == 0, f"{command}: {done.stderr}"

    return run


def _blocks(language: str, *, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_readme_s_commands_and_its_python_run_as_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "CHECKPOINT").symlink_to(checkpoint)
    commands = [line for block in _blocks("bash") for line in block.splitlines() if line]
    assert len(commands) >= 5
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "triptych"
        _run(["-m", "triptych.cli", *arguments], tmp_path)
    [script] = _blocks("python")
    shown = _run(["-c", script], tmp_path)
    assert shown.splitlines()[-1].startswith("49 ")
    assert (tmp_path / "cat" / "final.png").is_file()


@pytest.mark.slow
# A scheduler of diffusers' gives torch tensors to NumPy, whose protocols torch follows in their
# older form.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_the_guide_s_commands_run_as_written(
    follow: Reader, onnx_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "onnx").symlink_to(onnx_folder)
    tiny_checkpoint(tmp_path / "REFINER", kind="refiner")
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(tmp_path / "picture.png")
    Image.radial_gradient("L").resize((96, 64)).save(tmp_path / "mask.png")
    [callbacks] = _blocks("python", page=GUIDE)
    (tmp_path / "mine.py").write_text(callbacks, encoding="utf-8")
    commands = [line for block in _blocks("bash", page=GUIDE) for line in block.splitlines()]
    assert len(commands) > 15
    follow(commands)
    assert (tmp_path / "steered" / "step_03.png").is_file()
    del sys.modules["mine"]


@pytest.mark.slow
def test_the_dataset_guide_s_commands_run_as_written(
    follow: Reader, onnx_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "onnx").symlink_to(onnx_folder)
    queries = [{"reference_img_id": 123456, "multi_gpt-3.5_opt": ["a cat", "a dog"]}]
    (tmp_path / "test1.json").write_text(json.dumps(queries), encoding="utf-8")
    page = GUIDE.with_name("datasets.md")
    commands = [line for block in _blocks("bash", page=page) for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        follow([command])
        if "--clean" not in command and "--dry-run" not in command and "generate" in command:
            made = tmp_path / "output" / "proxy_images_sdxl_step8" / "combined"
            assert (made / "combined_123456_1.jpg").is_file()
    smoke = tmp_path / "test_output" / "sdxl_multistep"
    assert (smoke / "step_01.png").is_file()
    assert (smoke / "final.png").read_bytes() == (smoke / "step_32.png").read_bytes()
    assert not list((tmp_path / "output").glob("proxy*"))


@pytest.mark.slow
def test_the_quality_guide_s_commands_run_as_written(
    triptych: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = GUIDE.with_name("quality.md")
    commands = [line for block in _blocks("bash", page=page) for line in block.splitlines()]
    done = [triptych(*shlex.split(command)[1:]) for command in commands]
    assert [one.returncode for one in done] == [0] * 4, [one.stderr for one in done]
    reference, plain, compressed = done[-1].stdout.splitlines()[-3:]
    assert "inf dB" in reference
    for row, precision in ((plain, "fp32"), (compressed, "int8")):
        assert row.split()[:3] == ["onnx", "onnxruntime", precision]
        assert float(row.split()[-2]) > 20


@pytest.mark.slow
def test_the_parity_guide_s_commands_run_as_written(
    follow: Reader, checkpoint: Path, onnx_folder: Path, openvino_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "CHECKPOINT").symlink_to(checkpoint)
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "onnx").symlink_to(onnx_folder)
    (tmp_path / "OUT" / "openvino").symlink_to(openvino_folder)
    page = GUIDE.with_name("parity.md")
    lines = [line.strip() for block in _blocks("bash", page=page) for line in block.splitlines()]
    commands = [line for line in lines if line]
    assert len(commands) == 7
    follow(commands)
    written = {path.name for path in tmp_path.iterdir()}
    assert written > {"report.json", "report.html", "report.xml", "first.json", "budget.json"}


@pytest.mark.slow
def test_the_guide_to_checkpoints_runs_as_written(
    follow: Reader, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "CHECKPOINT").symlink_to(checkpoint)
    (tmp_path / "VAE").symlink_to(checkpoint / "vae")
    write_single_file(checkpoint, tmp_path / "model.safetensors")
    layer = "unet.mid_block.attentions.0.proj_in"
    factors = {f"{layer}.lora_{name}.weight": torch.ones(shape) for name, shape in FACTORS}
    for name in ("ink", "detail"):
        save_file(factors, tmp_path / f"{name}.safetensors")
    vectors = {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)}
    save_file(vectors, tmp_path / "cat.safetensors")
    cached = tmp_path / "hub" / "models--stabilityai--stable-diffusion-xl-base-1.0"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "snapshots" / "main").symlink_to(checkpoint)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("main", encoding="utf-8")
    monkeypatch.setenv("HF_HUB_CACHE", str(cached.parent))
    page = GUIDE.with_name("checkpoints.md")
    commands = [line for block in _blocks("bash", page=page) for line in block.splitlines()]
    assert len(commands) == 7
    follow(commands)
    assert (tmp_path / "cat" / "final.png").is_file()


def test_the_readme_s_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def _run(arguments: list[str], folder: Path) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{arguments}: {ended.stderr}"
    return ended.stdout
