"""triptych bisect: exit codes, the document, and what cannot be asked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest

pytestmark = pytest.mark.slow


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def faulty(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One weight of the U-Net is not a number."""
    folder = shutil.copytree(onnx_folder, tmp_path_factory.mktemp("faulty") / "bundle")
    (folder / "triptych.json").unlink()
    path = folder / "unet" / "model.onnx"
    model = onnx.load(path)
    (weight,) = [one for one in model.graph.initializer if one.name == "unet.conv_in.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    return folder


def test_a_sound_bundle_exits_0_and_says_so(checkpoint: Path, onnx_folder: Path) -> None:
    """In a process of its own, as people run it."""
    arguments = ("components", str(onnx_folder), "--reference", str(checkpoint))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "triptych.cli", "bisect", *arguments),
            *("--num-inference-steps", "1"),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("onnxruntime: ")
    assert "unet            alone brings" in done.stdout
    assert done.stdout.endswith("image: nothing to explain: the candidate keeps its limits\n")


def test_a_faulty_one_exits_1_with_one_strict_document(
    triptych: Cli, checkpoint: Path, faulty: Path
) -> None:
    """NaN among the errors: JSON has no word for it."""
    done = triptych(
        "bisect",
        *("components", faulty, "--reference", checkpoint, "--num-inference-steps", "1"),
        "--json",
    )
    assert done.returncode == 1, done.stderr

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    document = json.loads(done.stdout, parse_constant=refuse)
    assert (document["what"], document["verdict"]) == ("components", "failed")
    assert document["settings"]["num_inference_steps"] == 1
    (section,) = document["sections"]
    assert section["whole"]["error"] == "inf"
    assert "NaN" in section["whole"]["stopped_by"]
    assert section["shares"][0]["name"] == "unet"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fusions", "{onnx}"), 2, "fusions"),
        (("passes", "{openvino}"), 2, "want onnxruntime"),
        (("precision", "{onnx}"), 2, "triptych bisect export"),
        (("precision", "{openvino}", "--precision", "fp32"), 2, "want another"),
        (("components", "{onnx}", "--runtime", "openvino2"), 2, "openvino2"),
        (("passes", "{onnx}", "--component", "tokenizer"), 2, "tokenizer"),
        (("components", "{onnx}", "--device", "cpu", "--compute-units", "all"), 2, "want one"),
        (("export", "{checkpoint}"), 2, "want a bundle"),
        (("passes", "{onnx}", "--component", "preview_decoder"), 3, "want preview_decoder"),
        (("components", "{nowhere}"), 3, "want a bundle"),
        (("components", "{onnx}", "--device", "NoSuchProvider"), 4, "NoSuchProvider"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_asked_is_refused(
    triptych: Cli,
    checkpoint: Path,
    onnx_folder: Path,
    openvino_folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    places = {
        "onnx": onnx_folder,
        "openvino": openvino_folder,
        "checkpoint": checkpoint,
        "nowhere": tmp_path / "nowhere",
    }
    done = triptych(
        "bisect", *(one.format(**places) for one in arguments), "--reference", checkpoint
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_a_golden_holds_no_networks(
    triptych: Cli, checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    golden = tmp_path / "golden"
    recorded = triptych("record", checkpoint, golden, "--num-inference-steps", "1")
    assert recorded.returncode == 0
    done = triptych("bisect", "components", onnx_folder, "--reference", golden)
    assert done.returncode == 2
    assert "want the checkpoint" in done.stderr


def test_of_several_bundles_one_must_be_chosen(
    triptych: Cli, checkpoint: Path, onnx_folder: Path, openvino_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnx").symlink_to(onnx_folder)
    (tmp_path / "openvino").symlink_to(openvino_folder)
    done = triptych("bisect", "passes", tmp_path, "--reference", checkpoint)
    assert done.returncode == 2
    assert "want one of them" in done.stderr
