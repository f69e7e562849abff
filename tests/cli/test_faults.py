"""Broken input, impossible calls, failed checks and kills: exit codes, messages, nothing lost.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 broken input, 4 a backend is missing.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from triptych.bundle.bundle import open_bundle
from triptych.bundle.manifest import read_manifest, write_manifest
from triptych.bundle.store import record_files

WORKER = "triptych.workflows.export_process"
ONE_STEP = ("--prompt", "a cat", "--num-inference-steps", "1")


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bundle(onnx_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(onnx_folder, tmp_path / "bundle")


@pytest.fixture
def copied_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


# --- faults --------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}, indent=2) + "\n", encoding="utf-8")


def put_nan_into_a_weight(path: Path) -> None:
    model = onnx.load(path)
    (weight,) = [one for one in model.graph.initializer if one.name == "unet.conv_in.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def sign_again(bundle: Path) -> None:
    """Write hashes for the files as they are: the fault was there at export."""
    manifest = read_manifest(bundle)
    (bundle / "triptych.json").unlink()
    write_manifest(replace(manifest, files=record_files(bundle)), bundle)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("unet/model.onnx", flip_a_byte, "unet/model.onnx: content changed"),
        ("unet/model.onnx", cut, "unet/model.onnx: truncated"),
        ("vae_decoder/config.json", cut, "vae_decoder/config.json: truncated"),
        ("unet", shutil.rmtree, "unet/model.onnx: missing"),
        ("tokenizer_2/merges.txt", Path.unlink, "tokenizer_2/merges.txt: missing"),
        ("tokenizer", shutil.rmtree, "tokenizer/vocab.json: missing"),
    ],
)
def test_damage_is_named_by_every_command(
    triptych: Cli,
    bundle: Path,
    checkpoint: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    told: str,
) -> None:
    damage(bundle / name)

    sampled = triptych("sample", bundle, *ONE_STEP, "--output", tmp_path / "pictures")
    checked = triptych("check", bundle, "--reference", checkpoint)
    inspected = triptych("inspect", bundle)

    assert (sampled.returncode, checked.returncode, inspected.returncode) == (3, 3, 3)
    for ended in (sampled, checked):
        assert ended.stdout == ""
        assert told in ended.stderr
        assert "export it again" in ended.stderr
    assert told in inspected.stdout + inspected.stderr
    assert not (tmp_path / "pictures").exists()


def test_damage_in_json_is_a_document_and_exit_code_3(triptych: Cli, bundle: Path) -> None:
    flip_a_byte(bundle / "unet" / "model.onnx")
    inspected = triptych("inspect", bundle, "--json")
    assert inspected.returncode == 3
    (problem, *_) = json.loads(inspected.stdout)["problems"]
    assert problem.startswith("unet/model.onnx: content changed")


def test_config_of_another_model(
    triptych: Cli, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    edit(bundle / "unet" / "config.json", cross_attention_dim=96)
    sign_again(bundle)

    sampled = triptych("sample", bundle, *ONE_STEP, "--output", tmp_path / "pictures")
    assert sampled.returncode == 3
    assert "unet 'encoder_hidden_states': got float32 [batch_size, 77, 80]" in sampled.stderr
    assert "want float32 [batch, 77, 96]" in sampled.stderr
    assert "configs beside it are of different models" in sampled.stderr

    checked = triptych("check", bundle, "--reference", checkpoint)
    assert checked.returncode == 3
    assert "model.cross_attention_dim 96 and 80" in checked.stderr


def test_graph_of_another_component(triptych: Cli, bundle: Path, tmp_path: Path) -> None:
    shutil.copy(bundle / "vae_encoder" / "model.onnx", bundle / "vae_decoder" / "model.onnx")
    sign_again(bundle)
    sampled = triptych("sample", bundle, *ONE_STEP, "--output", tmp_path / "pictures")
    assert sampled.returncode == 3
    assert "vae_decoder/model.onnx: got inputs sample, want 'latent_sample'" in sampled.stderr
    assert "not an SDXL vae_decoder" in sampled.stderr
    assert not (tmp_path / "pictures").exists()


@pytest.mark.slow
def test_nan_in_a_weight_fails_the_check(
    triptych: Cli, bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    put_nan_into_a_weight(bundle / "unet" / "model.onnx")
    sign_again(bundle)

    sampled = triptych("sample", bundle, *ONE_STEP, "--output", tmp_path / "pictures")
    assert sampled.returncode == 1
    assert "unet 'noise_pred': got 2048 of 2048 elements NaN" in sampled.stderr
    assert "Its weights hold NaN" in sampled.stderr
    assert not (tmp_path / "pictures").exists()

    checked = triptych(
        *("check", bundle, "--reference", checkpoint, "--num-inference-steps", "1"),
        *("--num-threads", "1", "--json", "-"),
    )
    assert checked.returncode == 1
    report = json.loads(checked.stdout)
    assert report["verdict"] == "failed"
    rows = report["candidates"][0]["rows"]
    failed = {(row["stage"], row["component"]) for row in rows if row["verdict"] == "failed"}
    assert failed == {("finiteness", "unet")}


def test_checkpoint_of_pickles(triptych: Cli, copied_checkpoint: Path, tmp_path: Path) -> None:
    weights = copied_checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    for arguments in (
        ("export", copied_checkpoint, tmp_path / "out", "--to", "onnx"),
        ("sample", copied_checkpoint, *ONE_STEP, "--output", tmp_path / "out"),
        ("inspect", copied_checkpoint),
    ):
        ended = triptych(*arguments)
        assert (ended.returncode, ended.stdout) == (3, "")
        assert "diffusion_pytorch_model.bin, want safetensors" in ended.stderr
        assert "safe_serialization=True" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_truncated_weights(triptych: Cli, copied_checkpoint: Path, tmp_path: Path) -> None:
    cut(copied_checkpoint / "text_encoder" / "model.safetensors")
    ended = triptych("sample", copied_checkpoint, *ONE_STEP, "--output", tmp_path / "out")
    assert ended.returncode == 3
    assert "text_encoder/model.safetensors" in ended.stderr
    assert "Copy or download it again" in ended.stderr


# --- calls that cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--runtime", "tensorrt"), 2, "got 'tensorrt', want one of"),
        (("--runtime", "pytorch"), 2, "bundle in onnx format, want onnxruntime"),
        (("--device", "NoSuchExecutionProvider"), 4, "want one of those present: "),
        (("--num-inference-steps", "8", "--save-steps", "9"), 2, "got 9, want 1 to 8"),
        (("--num-inference-steps", "8", "--save-steps", "0,4"), 2, "got 0, want 1 to 8"),
        (("--save-steps", "1;4"), 2, "with commas between"),
        (("--num-inference-steps", "1001"), 2, "want 1 to 1000"),
        (("--height-px", "100"), 2, "height_px: got 100, want a positive multiple of 8"),
        (("--guidance-scale", "nan"), 2, "guidance_scale: got nan"),
        (("--seed", "1", "--seed", "2"), 2, "2 seeds for 1 images"),
        (("--seed", str(2**64)), 2, "want -2**63 to 2**64 - 1"),
        (("--negative-prompt", "a", "--negative-prompt", "b"), 2, "negative_prompt: got 2"),
        (("--latents", "no such file.npy"), 3, "no such file.npy"),
        (("--no-such-option",), 2, "No such option: --no-such-option"),
        (("--guidance-mode", "both"), 2, "'both' is not"),
    ],
)
def test_sampling_that_cannot_be(
    triptych: Cli,
    onnx_folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    output = tmp_path / "pictures"
    ended = triptych("sample", onnx_folder, *ONE_STEP, "--output", output, *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert told in " ".join(ended.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_not_for_onnxruntime(
    triptych: Cli, checkpoint: Path, tmp_path: Path
) -> None:
    ended = triptych(
        "sample", checkpoint, *ONE_STEP, "--output", tmp_path / "x", "--runtime", "onnxruntime"
    )
    assert ended.returncode == 2
    assert "bundle in diffusers format, want pytorch" in ended.stderr


def test_an_existing_output_folder_is_not_touched(
    triptych: Cli, onnx_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "final.png").write_text("mine")
    before = record_files(tmp_path)
    ended = triptych("sample", onnx_folder, *ONE_STEP, "--output", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--overwrite" in ended.stderr
    assert record_files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--runtime", "tensorrt"), 2, "got 'tensorrt', want one of"),
        (("--runtime", "pytorch"), 2, "which reads diffusers, for bundles in onnx format"),
        (("--num-inference-steps", "0"), 2, "--num-inference-steps"),
    ],
)
def test_checks_that_cannot_be(
    triptych: Cli,
    onnx_folder: Path,
    checkpoint: Path,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    ended = triptych("check", onnx_folder, "--reference", checkpoint, *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert told in ended.stderr


def test_a_bundle_as_the_reference(triptych: Cli, onnx_folder: Path) -> None:
    ended = triptych("check", onnx_folder, "--reference", onnx_folder)
    assert ended.returncode == 3
    assert "want the checkpoint in diffusers layout" in ended.stderr


def test_an_existing_bundle_is_not_replaced_unasked(
    triptych: Cli, checkpoint: Path, onnx_folder: Path
) -> None:
    before = record_files(onnx_folder)
    ended = triptych("export", checkpoint, onnx_folder.parent, "--to", "onnx")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--overwrite" in ended.stderr
    assert record_files(onnx_folder) == before


# --- a failed verification -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_verification_writes_nothing_and_keeps_the_old_bundle(
    triptych: Cli, copied_checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    path = copied_checkpoint / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("fc1.weight"))
    weights[name][0, 0] = np.nan
    save_file(weights, path, metadata={"format": "pt"})
    arguments = ("export", copied_checkpoint, "--to", "onnx", "--component", "text_encoder")

    ended = triptych(*arguments, tmp_path / "new")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "text_encoder 'hidden_states'" in ended.stderr
    assert "NaN" in ended.stderr
    assert list((tmp_path / "new").iterdir()) == []

    old = tmp_path / "old"
    old.mkdir()
    shutil.copytree(bundle, old / "onnx")
    before = record_files(old)
    ended = triptych(*arguments, old, "--overwrite")
    assert ended.returncode == 1
    assert record_files(old) == before
    assert [path.name for path in old.iterdir()] == ["onnx"]


# --- kills ---------------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/cmdline").is_file(), reason="looks for processes in /proc"
)
Moment = Callable[["Export"], bool]


@dataclass(frozen=True)
class Export:
    """An export that is running as a process of its own."""

    process: "subprocess.Popen[str]"
    output: Path

    def partial(self) -> Path:
        return self.output / f".onnx.partial-{self.process.pid}"

    def workers(self) -> set[int]:
        found = set()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and _is_worker(folder, self.process.pid):
                found.add(int(folder.name))
        return found

    def wait_for(self, moment: Moment) -> None:
        """Watch closely: some moments are short."""
        while self.process.poll() is None and not moment(self):
            time.sleep(0.001)

    def kill(self) -> None:
        """The whole process, but not its children, who must notice on their own."""
        workers = self.workers()
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        deadline = time.monotonic() + 60  # generous: a busy machine is not a failure
        while left := {pid for pid in workers if _is_running(pid)}:
            assert time.monotonic() < deadline, f"workers {left} outlive their parent"
            time.sleep(0.05)


def _is_worker(folder: Path, parent: int) -> bool:
    try:
        command = (folder / "cmdline").read_bytes()
        status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # it ended while we looked
    return WORKER.encode() in command and int(status.rpartition(")")[2].split()[1]) == parent


def _is_running(pid: int) -> bool:
    """Whether a process lives; a zombie that nobody has asked about does not."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return WORKER.encode() in command


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[[], Export]]:
    """Starts exports of the smallest component, over whatever is there."""
    output = tmp_path / "out"
    output.mkdir()
    started: list[subprocess.Popen[str]] = []

    def run() -> Export:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "triptych.cli", "export", str(checkpoint), str(output)),
                *("--to", "onnx", "--component", "text_encoder", "--overwrite"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return Export(process=process, output=output)

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def folder_is_there(export: Export) -> bool:
    return export.partial().is_dir()


def worker_is_there(export: Export) -> bool:
    return bool(export.workers())


def graph_is_there(export: Export) -> bool:
    return (export.partial() / "text_encoder" / "model.onnx").is_file()


def manifest_is_there(export: Export) -> bool:
    return (export.partial() / "triptych.json").is_file()


def end_well(export: Export) -> None:
    talk, _ = export.process.communicate()
    assert export.process.returncode == 0, talk
    assert [path.name for path in export.output.iterdir()] == ["onnx"]  # no leftovers
    written = open_bundle(export.output / "onnx")
    assert set(written.artifacts) == {"text_encoder"}
    written.check_files()


@needs_proc
@pytest.mark.slow
def test_a_killed_export_leaves_no_half_bundle(start: Callable[[], Export]) -> None:
    for moment in (folder_is_there, worker_is_there, graph_is_there, manifest_is_there):
        export = start()
        export.wait_for(moment)
        export.kill()

        target = export.output / "onnx"
        if target.exists():  # only where the kill came too late
            assert moment is manifest_is_there
            open_bundle(target).check_files()
    end_well(start())


@needs_proc
@pytest.mark.slow
def test_a_killed_export_leaves_the_bundle_it_was_to_replace(
    start: Callable[[], Export], onnx_folder: Path, tmp_path: Path, triptych: Cli
) -> None:
    before = record_files(onnx_folder)
    target = shutil.copytree(onnx_folder, tmp_path / "out" / "onnx")
    for moment in (folder_is_there, graph_is_there, manifest_is_there):
        export = start()
        export.wait_for(moment)
        export.kill()

        # The old one, the new one, or the old one put aside for the next export to put back.
        aside = [path for path in export.output.iterdir() if ".replaced-" in path.name]
        assert target.exists() or (moment is manifest_is_there and aside)
        for whole in [target] if target.exists() else aside:
            if record_files(whole) == before:
                assert triptych("inspect", whole).returncode == 0
            else:
                assert moment is manifest_is_there
                open_bundle(whole).check_files()
    end_well(start())
