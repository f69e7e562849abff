"""triptych bench: the commands of its page, and how it ends."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest

from triptych.workflows.bench_report import (
    BenchReport,
    ComponentBench,
    RuntimeBench,
    SamplerBench,
    Timing,
    Work,
)

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
SMALL = ("--size", "64")


def triptych(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "triptych.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def test_the_page_s_commands_run_as_written(onnx_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "onnx").symlink_to(onnx_folder)
    [block] = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for_people, for_scripts = (
        triptych(tmp_path, *shlex.split(line)[1:]) for line in block.splitlines()
    )
    assert for_people.returncode == 0, for_people.stderr
    lines = for_people.stdout.splitlines()
    rows = [line.split()[0] for line in lines if "ms" in line or " s " in line]
    assert rows[: len(COMPONENTS) + 1] == [*COMPONENTS, "step"]
    assert lines[-1].startswith("cold start: ")
    assert any(line.startswith("matrix products in fp32: ") for line in lines)
    assert for_scripts.returncode == 0, for_scripts.stderr
    check_document(json.loads(for_scripts.stdout))


def check_document(document: dict[str, object]) -> None:
    """What the page says of it."""
    text = PAGE.read_text(encoding="utf-8")
    assert document.keys() == names(BenchReport)
    assert document["notes"] == []
    assert isinstance(document["runtimes"], list)
    [engine] = document["runtimes"]
    assert engine.keys() == names(RuntimeBench)
    assert (engine["runtime"], engine["threads"]) == ("openvino", "1")
    [unet] = engine["components"]
    assert (unet["component"], unet["precision"]) == ("unet", "fp32")
    for found, kind in (
        (unet, ComponentBench),
        (unet["call"], Timing),
        (unet["work"], Work),
        (engine["sampler"], SamplerBench),
        (engine["sampler"]["step"], Timing),
    ):
        assert found.keys() == names(kind)
        for name in found:
            assert f"`{name}`" in text
    sampler, peak = engine["sampler"], engine["matmul_gflop_per_second"]["fp32"]
    assert sampler["work"]["flops"] == 2 * unet["work"]["flops"]
    rate = unet["work"]["flops"] / unet["call"]["median_seconds"] / 1e9
    assert unet["work"]["peak_share"] == pytest.approx(rate / peak)
    if sys.platform == "linux":
        assert min(unet["peak_bytes"], sampler["peak_bytes"]) > 10 << 20


def test_a_component_that_gives_nan_exits_1(onnx_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    path = folder / "vae_decoder" / "model.onnx"
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.name.endswith("conv_out.bias"):
            values = np.full(onnx.numpy_helper.to_array(weight).shape, np.nan, np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    done = triptych(tmp_path, "bench", "bundle", "--component", "vae_decoder", *SMALL)
    assert done.returncode == 1, done.stderr
    assert "vae_decoder 'image': got" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--runtime", "pytorch"), 2, "want onnxruntime or openvino"),
        (("--width-px", "65"), 2, "width_px: got 65"),
        (("--size", "65"), 2, "height_px: got 65"),
        ((*SMALL, "--width-px", "64"), 2, "--size: got one beside"),
        (("--steps", "0"), 2, "--steps"),
        (("--device", "TPU", "--component", "vae_decoder"), 4, "no execution provider 'TPU'"),
    ],
)
def test_what_cannot_be_measured(
    options: tuple[str, ...], code: int, said: str, onnx_folder: Path
) -> None:
    done = triptych(onnx_folder.parent, "bench", onnx_folder.name, *options)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stdout == ""


def test_a_folder_that_is_no_bundle_exits_3(tmp_path: Path) -> None:
    assert triptych(tmp_path, "bench", ".").returncode == 3
