"""Core ML on the command line, where there is no Mac: interpreted, or refused with what to do."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

pytestmark = pytest.mark.slow

off_a_mac = pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML itself runs here")


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sample(triptych: Cli) -> Cli:
    """One step of a bundle, into a folder."""

    def run(bundle: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
        steps = ("--num-inference-steps", "1")
        return triptych("sample", bundle, "--prompt", "a cat", "--output", output, *steps, *options)

    return run


def test_a_bundle_is_sampled_at_the_size_it_was_built_for(
    sample: Cli, coreml_folder: Path, tmp_path: Path
) -> None:
    done = sample(coreml_folder, tmp_path / "out", "--runtime", "coreml-reference")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert "coreml-reference" in json.dumps(run)


def test_another_size_is_refused_with_the_built_one(
    sample: Cli, coreml_folder: Path, tmp_path: Path
) -> None:
    options = ("--runtime", "coreml-reference", "--height-px", "64")
    done = sample(coreml_folder, tmp_path / "out", *options)
    assert done.returncode == 2
    assert "want 128 x 128 (height x width), the only size it was built for" in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_row_is_refused_by_a_unet_of_two(
    sample: Cli, coreml_folder: Path, tmp_path: Path
) -> None:
    options = ("--runtime", "coreml-reference", "--guidance-scale", "1")
    done = sample(coreml_folder, tmp_path / "out", *options)
    assert done.returncode == 3
    assert "got 1, want a multiple of 2" in done.stderr
    assert "--coreml-batch 1" in done.stderr
    assert not (tmp_path / "out").exists()


@off_a_mac
def test_core_ml_itself_is_refused_off_a_mac(
    sample: Cli, coreml_folder: Path, tmp_path: Path
) -> None:
    done = sample(coreml_folder, tmp_path / "out")
    assert done.returncode == 4
    assert "runs on macOS only" in done.stderr
    assert "--runtime coreml-reference" in done.stderr


@off_a_mac
def test_a_check_on_core_ml_itself_is_not_run_off_a_mac(
    triptych: Cli, coreml_folder: Path, checkpoint: Path
) -> None:
    done = triptych("check", coreml_folder, "--reference", checkpoint, "--json", "-")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert report["verdict"] == "not_run"
    (candidate,) = report["candidates"]
    assert "runs on macOS only" in candidate["unavailable"]
    verdicts = {(row["stage"], row["verdict"]) for row in candidate["rows"]}
    assert verdicts == {
        ("contract", "passed"),
        *((stage, "not_run") for stage in ("component", "teacher_forced", "free_running", "image")),
    }
    assert "--runtime coreml-reference" in done.stderr


def test_a_check_of_the_program_passes_anywhere(
    triptych: Cli, coreml_folder: Path, checkpoint: Path
) -> None:
    options = ("--runtime", "coreml-reference", "--num-inference-steps", "8", "--json", "-")
    done = triptych("check", coreml_folder, "--reference", checkpoint, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (candidate,) = report["candidates"]
    ran = candidate["executions"].values()
    assert {part["runtime"] for part in ran} == {"coreml-reference"}
    worst = {
        stage: max(row["rel_l2"] for row in candidate["rows"] if row["stage"] == stage)
        for stage in ("component", "free_running", "image")
    }
    assert worst["component"] < 1e-5
    assert worst["free_running"] < 1e-4
    assert worst["image"] < 1e-4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--to", "onnx", "--coreml-chunks", "2"), "settings that only coreml has"),
        (("--to", "openvino", "--height-px", "64"), "settings that only coreml has"),
        (("--to", "coreml", "--width-px", "60"), "want a positive multiple of 8"),
        (
            ("--to", "coreml", "--precision", "int8-dynamic"),
            "got precision 'int8-dynamic', want one of fp32, fp16",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(
    triptych: Cli, options: tuple[str, ...], told: str, checkpoint: Path, tmp_path: Path
) -> None:
    done = triptych("export", checkpoint, tmp_path / "out", *options)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_bits_that_cannot_be_are_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own: this one checks annotations, which refuse them first."""
    arguments = (str(checkpoint), str(tmp_path / "out"), "--to", "coreml", "--palettize-bits", "3")
    done = subprocess.run(
        [sys.executable, "-m", "triptych.cli", "export", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert "want one of None, 1, 2, 4, 6, 8" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_device_has_one_name_at_a_time(sample: Cli, coreml_folder: Path, tmp_path: Path) -> None:
    options = ("--device", "all", "--compute-units", "all")
    done = sample(coreml_folder, tmp_path / "out", *options)
    assert done.returncode == 2
    assert "want one of them" in done.stderr
