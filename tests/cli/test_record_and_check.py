"""triptych record, and check against what it wrote: files, exit codes, and nothing but NumPy."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

from triptych.parity.budget import read_budget
from triptych.parity.golden import read_golden
from triptych.parity.golden_manifest import read_golden_manifest
from triptych.parity.report_file import read_report

pytestmark = pytest.mark.slow

WITHOUT_TORCH = """
import sys

sys.modules.update(dict.fromkeys(("torch", "diffusers", "transformers", "accelerate", "optimum")))
from triptych.cli.app import main
main()
"""

SMALL = ("--height-px", "64", "--width-px", "72", "--num-inference-steps", "3")


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="session")
def golden(triptych: Cli, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "tiny"
    done = triptych("record", checkpoint, folder, *SMALL, "--seed", "5", "--profile", "full")
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert first.startswith(f"{folder}: 3 steps, 19 component runs, ")
    assert second.startswith("recorded on pytorch ")
    assert last == f"next: triptych check BUNDLE --reference {folder}"
    return folder


def rows_of(report: object) -> list[Mapping[str, object]]:
    assert isinstance(report, dict)
    return [row for candidate in report["candidates"] for row in candidate["rows"]]


# --- record --------------------------------------------------------------------------------------


def test_a_golden_says_how_it_was_made(golden: Path) -> None:
    manifest = read_golden_manifest(golden)
    assert manifest.command[:2] == ("triptych", "record")
    assert (manifest.profile, manifest.precision) == ("full", "fp32")
    assert manifest.run.seeds == (5,)
    assert manifest.execution.details["tf32"] == "off"
    assert "torch" in manifest.fingerprint.packages
    assert {floor.arithmetic for floor in manifest.floors} == {"fp16", "bf16", "fp16_weights"}
    assert manifest.preconditions["negative_prompt"] == "zeros"


def test_lower_precisions_cost_what_they_should(golden: Path) -> None:
    """Of the U-Net: bf16 has 8 bits, fp16 11, and rounded weights are only a part of that."""
    worst: dict[str, float] = {}
    for floor in read_golden_manifest(golden).floors:
        if (floor.stage, floor.component) == ("component", "unet"):
            worst[floor.arithmetic] = max(worst.get(floor.arithmetic, 0.0), floor.rel_l2)
    assert 2e-4 < worst["fp16_weights"] < worst["fp16"] < 5e-3 < worst["bf16"] < 5e-2


def test_a_run_of_ones_own_is_recorded(triptych: Cli, checkpoint: Path, tmp_path: Path) -> None:
    done = triptych(
        *("record", checkpoint, tmp_path / "mine", *SMALL, "--precision", "fp16"),
        *("--prompt", "a cat", "--prompt-2", "oil painting", "--negative-prompt", "fog"),
        *("--scheduler", "ddim", "--guidance-scale", "3"),
    )
    assert done.returncode == 0, done.stderr
    recording = read_golden(tmp_path / "mine")
    assert recording.precision == "fp16"
    assert recording.settings.scheduler.name == "ddim"
    assert recording.settings.guidance_scale == 3
    assert recording.preconditions["negative_prompt"] == "encoded"
    assert recording.image.shape == (1, 3, 64, 72)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--profile", "full", "--precision", "fp16"), 2, "want quick, or fp32"),
        (("--prompt-2", "alone"), 2, "want --prompt too"),
        (("--device", "tpu"), 4, "got no device 'tpu'"),
        (("--scheduler", "nothing"), 2, "got 'nothing', want one of euler"),
        (("--num-inference-steps", "0"), 2, "--num-inference-steps"),
        (("--height-px", "63", "--width-px", "64"), 2, "63"),
        (("--height-px", "64"), 2, "want both or neither"),
    ],
)
def test_recordings_that_cannot_be(
    triptych: Cli,
    checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    done = triptych("record", checkpoint, tmp_path / "golden", *arguments)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_it_is_a_golden(
    triptych: Cli, checkpoint: Path, golden: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    done = triptych("record", checkpoint, tmp_path / "mine", *SMALL)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    done = triptych("record", checkpoint, tmp_path / "mine", *SMALL, "--overwrite")
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"
    assert golden.is_dir()


def test_a_bundle_is_not_recorded(triptych: Cli, onnx_folder: Path, tmp_path: Path) -> None:
    done = triptych("record", onnx_folder, tmp_path / "golden")
    assert done.returncode == 3
    assert "want the checkpoint in diffusers layout" in done.stderr


# --- check against a golden ----------------------------------------------------------------------


def test_a_check_against_a_golden_needs_no_torch(
    golden: Path, onnx_folder: Path, openvino_folder: Path, tmp_path: Path
) -> None:
    assert without_torch("check", onnx_folder, "--reference", onnx_folder).returncode != 0
    for folder in (onnx_folder, openvino_folder):
        done = without_torch("check", folder, "--reference", golden, "--json", "-")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["verdict"] == "passed"
        assert report["reference"]["kind"] == "golden"
        stages = {row["stage"] for row in rows_of(report)}
        assert stages >= {"precondition", "precision", "component", "free_running", "image"}
    assert not any(tmp_path.iterdir())


def test_torch_is_really_absent_there(checkpoint: Path, onnx_folder: Path) -> None:
    done = without_torch("check", onnx_folder, "--reference", checkpoint)
    assert done.returncode == 4
    assert "pip install 'triptych[export]'" in done.stderr


def test_several_engines_at_once_are_compared_with_each_other(
    triptych: Cli,
    golden: Path,
    onnx_folder: Path,
    openvino_folder: Path,
    coreml_folder: Path,
    tmp_path: Path,
) -> None:
    """Core ML's graph makes pictures of one size, which this golden is not of."""
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    for name, folder in (("onnx", onnx_folder), ("openvino", openvino_folder)):
        (bundles / name).symlink_to(folder)
    names = ("--runtime", "onnxruntime", "--runtime", "openvino")
    written = ("--json", "r.json", "--html", "r.html", "--junit", "r.xml")
    paths = [str(tmp_path / part) if "." in part else part for part in written]
    done = triptych("check", bundles, "--reference", golden, *names, *paths)
    assert done.returncode == 0, done.stderr
    report = read_report(tmp_path / "r.json")
    assert [candidate.runtime for candidate in report.candidates] == ["onnxruntime", "openvino"]
    assert report.odd_one_out is not None
    assert report.odd_one_out.participants == ("reference", "onnxruntime", "openvino")
    assert report.odd_one_out.odd == ""
    assert "data:image/png" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'testsuite name="openvino' in (tmp_path / "r.xml").read_text(encoding="utf-8")
    assert "onnxruntime: smallest limits that would pass: " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("passed: ")

    done = triptych("check", coreml_folder, "--reference", golden, "--runtime", "coreml-reference")
    assert done.returncode == 3
    assert "the pictures' size, 128 x 128 px and 64 x 72 px (height x width)" in done.stderr


def test_one_line_says_all_about_a_component(
    triptych: Cli, golden: Path, onnx_folder: Path
) -> None:
    done = triptych("check", onnx_folder, "--reference", golden)
    (line,) = [
        line for line in done.stdout.splitlines() if line.startswith("  component       unet")
    ]
    told = ("t=", "noise_pred", "declared=fp32  ran=fp32", "rel-L2 ", "limit 1.0e-05", "PASSED")
    assert all(part in line for part in told)


def test_an_engine_that_is_absent_is_listed_and_fails_only_where_it_is_required(
    triptych: Cli, golden: Path, onnx_folder: Path, coreml_folder: Path, tmp_path: Path
) -> None:
    if sys.platform == "darwin":
        pytest.skip("Core ML is present on macOS")
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    (bundles / "onnx").symlink_to(onnx_folder)
    (bundles / "coreml").symlink_to(coreml_folder)
    both = ("check", bundles, "--reference", golden, "--runtime", "onnxruntime")
    done = triptych(*both, "--runtime", "coreml")
    assert done.returncode == 0, done.stderr
    assert "coreml: not run. " in done.stderr
    done = triptych(*both, "--require", "coreml")
    assert done.returncode == 4
    done = triptych("check", coreml_folder, "--reference", golden)
    assert done.returncode == 4  # nothing ran


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seed", "1"), "the run's settings"),
        (("--num-inference-steps", "2"), "the run's settings"),
        (("--explain",), "--explain"),
        (("--variant", "fp16"), "--variant"),
        (("--reference-device", "cuda"), "--reference-device"),
        (("--accept",), "got --accept without --budget"),
        (("--image-metric", "json:nothing"), "want something in json that can be called"),
        (
            ("--device", "CPU", "--runtime", "openvino", "--runtime", "onnxruntime"),
            "--runtime NAME:DEVICE",
        ),
        (("--runtime", "openvino", "--runtime", "openvino"), "want each of them once"),
        (("--runtime", "onnxruntime", "--runtime", "coreml"), "which reads coreml, for bundles"),
    ],
)
def test_options_that_do_not_go_with_a_golden(
    triptych: Cli, golden: Path, onnx_folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = triptych("check", onnx_folder, "--reference", golden, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert told in done.stderr


def test_a_stale_golden_is_not_compared(
    triptych: Cli, golden: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (bundle / "triptych.json").unlink()
    path = bundle / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "beta_end": 0.011}), encoding="utf-8")
    done = triptych("check", bundle, "--reference", golden)
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be compared" in done.stderr
    assert "scheduler_config.beta_end 0.011 and 0.012" in done.stderr


def test_accepted_limits_are_written_for_review_and_then_pass(
    triptych: Cli, golden: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    """Judged as fp32, an output that is off by a little fails; accepted, it passes."""
    bundle = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (bundle / "triptych.json").unlink()
    nudge(bundle / "vae_encoder" / "model.onnx")
    budget = tmp_path / "budget.json"
    command = ("check", bundle, "--reference", golden, "--budget", budget)
    assert triptych(*command).returncode == 3  # there is no such file
    failed = triptych("check", bundle, "--reference", golden)
    assert failed.returncode == 1
    assert "FAILED" in failed.stdout
    accepted = triptych(*command, "--accept")
    assert accepted.returncode == 0, accepted.stderr
    limits = {entry.component: entry.limit for entry in read_budget(budget).entries}
    assert limits["vae_encoder"] > 1e-5 > limits["unet"]
    again = triptych(*command)
    assert again.returncode == 0, again.stdout
    assert "(budget)" in again.stdout


def nudge(graph: Path) -> None:
    import onnx

    model = onnx.load(graph)
    weight = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight) * (1 + 1e-3)
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), weight.name))
    onnx.save(model, graph)


def test_a_metric_of_ones_own_is_told_and_decides_nothing(
    golden: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    script = (
        "def farthest(actual, expected):\n    return abs(actual - expected).max()\n\n"
        "def terrible(actual, expected):\n    return float('inf')\n"
    )
    (tmp_path / "my_metrics.py").write_text(script, encoding="utf-8")
    names = ("my_metrics:farthest", "my_metrics:terrible")
    options = [part for name in names for part in ("--image-metric", name)]
    command = ("check", str(onnx_folder), "--reference", str(golden), *options, "--json", "-")
    done = subprocess.run(
        [sys.executable, "-m", "triptych.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (image,) = [row for row in rows_of(json.loads(done.stdout)) if row["stage"] == "image"]
    assert image["verdict"] == "passed"
    assert image["metrics"] == {names[0]: image["max_abs"], names[1]: "inf"}


def test_a_metric_that_raises_is_named(
    triptych: Cli, golden: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "def broken(actual, expected):\n    return actual.no_such_thing\n"
    (tmp_path / "broken_metrics.py").write_text(script, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name = "broken_metrics:broken"
    done = triptych("check", onnx_folder, "--reference", golden, "--image-metric", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"image metric {name}: it raised AttributeError" in " ".join(done.stderr.split())


def test_one_engine_on_two_devices_is_two_candidates(
    triptych: Cli, golden: Path, onnx_folder: Path
) -> None:
    names = ("onnxruntime:CPUExecutionProvider", "openvino:CPU")
    named = [part for name in names for part in ("--runtime", name)]
    done = triptych("check", onnx_folder, "--reference", golden, *named, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [candidate["runtime"] for candidate in report["candidates"]] == list(names)
    assert report["odd_one_out"]["participants"] == ["reference", *names]


def test_a_class_of_ones_own_choosing(triptych: Cli, golden: Path, onnx_folder: Path) -> None:
    done = triptych("check", onnx_folder, "--reference", golden, "--class", "int8", "--json", "-")
    assert done.returncode == 0, done.stderr
    rows = [row for row in rows_of(json.loads(done.stdout)) if row["limit"] is not None]
    assert {row["precision"] for row in rows} == {"int8"}


def test_a_checkpoint_measures_the_floors_it_needs(
    triptych: Cli, checkpoint: Path, tmp_path: Path
) -> None:
    made = triptych(
        *("export", checkpoint, tmp_path, "--to", "onnx", "--precision", "fp16"),
        *("--component", "text_encoder"),
    )
    assert made.returncode == 0, made.stderr
    command = ("check", tmp_path / "onnx", "--reference", checkpoint, "--json", "-")
    steps = ("--num-inference-steps", "1")
    done = triptych(*command, *steps)
    assert done.returncode == 1  # the other components are not there
    report = json.loads(done.stdout)
    assert report["reference"]["floors"] == ["fp16"]
    rows = [row for row in rows_of(report) if row["limit"] is not None]
    assert {row["limit_source"] for row in rows} == {"floor"}
    assert all(isinstance(row["ratio"], float) and row["ratio"] < 2 for row in rows)
    quick = json.loads(triptych(*command, *steps, "--profile", "quick").stdout)
    sources = {row["limit_source"] for row in rows_of(quick) if row["limit"] is not None}
    assert sources == {"constant"}
