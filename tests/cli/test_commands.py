"""The commands from start to end, as processes: files, documents on stdout, repeated runs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from triptych.bundle.store import record_files
from triptych.scenes.judge import read_scene
from triptych.scenes.scene import caption
from triptych.types import Array
from triptych.workflows.demo import DEMO_PROMPT

pytestmark = pytest.mark.slow

BLOCKED = ("torch", "diffusers", "transformers", "onnx", "optimum", "accelerate")
"""What an edge machine does not have. onnxruntime, NumPy and a tokenizer are enough there."""

WITHOUT_FRAMEWORKS = f"""
import sys

# Python's own way to say that a module is not there: importing it raises.
sys.modules.update(dict.fromkeys({BLOCKED!r}))
from triptych.cli.app import main
main()
"""

SAMPLE = (
    *("--prompt", "a cat", "--negative-prompt", "fog", "--seed", "7", "--guidance-scale", "3.5"),
    *("--num-inference-steps", "4", "--save-steps", "1,4", "--crop", "8", "16"),
    *("--height-px", "64", "--width-px", "72"),
)


Cli: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


def triptych_at_the_edge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # One thread: on networks this small, several only wait for each other.
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_FRAMEWORKS, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def only_document(done: subprocess.CompletedProcess[str]) -> object:
    """All of stdout as one strict JSON document."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(done.stdout, parse_constant=refuse)


def pixels(path: Path) -> Array:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def first_run(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the bundle without any framework."""
    output = tmp_path_factory.mktemp("first") / "pictures"
    done = triptych_at_the_edge("sample", onnx_folder, *SAMPLE, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: steps 1, 4\n"
    return output


# --- sample --------------------------------------------------------------------------------------


def test_sampling_from_a_bundle_needs_no_framework(first_run: Path) -> None:
    expected = {"step_01.png", "step_04.png", "final.png", "latents.safetensors", "run.json"}
    assert {path.name for path in first_run.iterdir()} == expected
    final, last = pixels(first_run / "final.png"), pixels(first_run / "step_04.png")
    np.testing.assert_array_equal(final, last)
    assert final.shape == (64, 72, 3)
    assert not np.array_equal(final, pixels(first_run / "step_01.png"))


def test_frameworks_are_really_blocked_there(checkpoint: Path, tmp_path: Path) -> None:
    done = triptych_at_the_edge("sample", checkpoint, *SAMPLE, "--output", tmp_path / "pictures")
    assert done.returncode == 4
    assert "pip install 'triptych[export]'" in done.stderr
    assert not (tmp_path / "pictures").exists()


def test_run_json_repeats_a_run(first_run: Path, tmp_path: Path) -> None:
    before = json.loads((first_run / "run.json").read_text(encoding="utf-8"))
    negative, positive = before["time_ids"]
    numbers = [
        ("--original-size", positive[:2]),
        ("--crop", positive[2:4]),
        ("--target-size", positive[4:]),
        ("--negative-original-size", negative[:2]),
        ("--negative-crop", negative[2:4]),
        ("--negative-target-size", negative[4:]),
        ("--num-inference-steps", [before["num_inference_steps"]]),
        ("--num-images-per-prompt", [before["num_images_per_prompt"]]),
        ("--height-px", [before["height_px"]]),
        ("--width-px", [before["width_px"]]),
        *(("--seed", [seed]) for seed in before["seeds"]),
    ]
    arguments: list[str] = [
        before["bundle"]["path"],
        *("--prompt", *before["prompts"]["prompt"]),
        *("--negative-prompt", *before["prompts"]["negative_prompt"]),
        *("--guidance-scale", str(before["guidance_scale"])),
        *("--guidance-mode", before["guidance_mode"]),
        *("--save-steps", ",".join(map(str, before["save_steps"]))),
        *(str(word) for name, values in numbers for word in (name, *map(int, values))),
        *("--runtime", before["runtime"]["name"], "--device", before["runtime"]["device"]),
    ]

    done = triptych_at_the_edge("sample", *arguments, "--output", tmp_path / "again", "--json")

    assert done.returncode == 0, done.stderr
    after = only_document(done)
    assert isinstance(after, dict)
    assert after == before
    for name in ("step_01.png", "step_04.png", "final.png", "latents.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (first_run / name).read_bytes()


def test_another_seed_is_another_run(
    triptych: Cli, first_run: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    done = triptych(
        "sample", onnx_folder, *SAMPLE[:5], "8", *SAMPLE[6:], "--output", tmp_path / "x", "--json"
    )
    assert done.returncode == 0, done.stderr
    after = only_document(done)
    before = json.loads((first_run / "run.json").read_text(encoding="utf-8"))
    assert isinstance(after, dict)
    assert after["seeds"] == [8]
    assert after["final_latents_sha256"] != before["final_latents_sha256"]


def test_saved_noise_repeats_a_run(first_run: Path, onnx_folder: Path, tmp_path: Path) -> None:
    without_seed: list[str] = [*SAMPLE[:4], *SAMPLE[6:]]
    done = triptych_at_the_edge(
        *("sample", onnx_folder, "--output", tmp_path / "again", "--json"),
        *("--latents", first_run / "latents.safetensors"),
        *without_seed,
    )
    assert done.returncode == 0, done.stderr
    before = json.loads((first_run / "run.json").read_text(encoding="utf-8"))
    after = only_document(done)
    assert isinstance(after, dict)
    assert after["noise_sha256"] == before["noise_sha256"]
    assert after["final_latents_sha256"] == before["final_latents_sha256"]
    assert after["seeds"] is None
    np.testing.assert_array_equal(
        load_file(tmp_path / "again" / "latents.safetensors")["final"],
        load_file(first_run / "latents.safetensors")["final"],
    )


def test_names_that_look_like_markup_are_printed_as_they_are(
    triptych: Cli, onnx_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out [bold][" / "a] :cat:"
    done = triptych(
        *("sample", onnx_folder, "--prompt", "[/red] a cat", "--num-inference-steps", "1"),
        *("--output", output),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: steps 1\n"


# --- the other commands --------------------------------------------------------------------------


def test_tiny_checkpoint(triptych: Cli, checkpoint: Path, tmp_path: Path) -> None:
    done = triptych("tiny-checkpoint", tmp_path / "tiny", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "tiny") in done.stdout
    assert record_files(tmp_path / "tiny") == record_files(checkpoint)

    again = triptych("tiny-checkpoint", tmp_path / "tiny")
    assert again.returncode == 2
    assert "not empty" in again.stderr
    assert record_files(tmp_path / "tiny") == record_files(checkpoint)


def test_export_of_one_component_is_checked_but_has_not_passed(
    triptych: Cli, checkpoint: Path, tmp_path: Path
) -> None:
    done = triptych(
        *("export", checkpoint, tmp_path, "--to", "onnx", "--component", "text_encoder", "--json")
    )
    assert done.returncode == 0, done.stderr
    summaries = only_document(done)
    assert isinstance(summaries, list)
    assert [part["name"] for part in summaries[0]["components"]] == ["text_encoder"]

    done = triptych(
        *("check", tmp_path / "onnx", "--reference", checkpoint, "--json", "-"),
        *("--num-inference-steps", "1"),
    )
    assert done.returncode == 1, done.stderr
    report = only_document(done)
    assert isinstance(report, dict)
    assert report["verdict"] == "not_run"
    by_component: dict[str, set[str]] = {}
    for row in report["candidates"][0]["rows"]:
        by_component.setdefault(row["component"], set()).add(row["verdict"])
    assert by_component.pop("text_encoder") == {"passed"}
    assert set(map(frozenset, by_component.values())) == {frozenset({"not_run"})}


def test_a_preview_decoder_from_elsewhere_is_exported_and_checked(
    triptych: Cli, checkpoint: Path, preview_checkpoint: Path, tmp_path: Path
) -> None:
    done = triptych(
        *("export", checkpoint, tmp_path / "out", "--to", "onnx", "--json"),
        *("--component", "preview_decoder", "--preview-decoder", checkpoint / "vae"),
    )
    assert done.returncode == 3
    assert "want 'AutoencoderTiny'" in done.stderr
    assert not (tmp_path / "out").exists()

    elsewhere = ("--preview-decoder", preview_checkpoint / "preview_decoder")
    done = triptych(
        *("export", checkpoint, tmp_path / "out", "--to", "onnx", "--json"),
        *("--component", "preview_decoder", *elsewhere),
    )
    assert done.returncode == 0, done.stderr
    summaries = only_document(done)
    assert isinstance(summaries, list)
    (part,) = summaries[0]["components"]
    assert (part["name"], part["verified_rel_l2"] < 1e-5) == ("preview_decoder", True)

    done = triptych(
        *("check", tmp_path / "out" / "onnx", "--reference", checkpoint, "--json", "-", *elsewhere),
        *("--num-inference-steps", "1"),
    )
    assert done.returncode == 1, done.stderr  # the other components are not there
    report = only_document(done)
    assert isinstance(report, dict)
    verdicts = {row["component"]: row["verdict"] for row in report["candidates"][0]["rows"]}
    assert [name for name, verdict in verdicts.items() if verdict == "passed"] == [
        "preview_decoder"
    ]


def test_check_of_a_clean_bundle(triptych: Cli, onnx_folder: Path, checkpoint: Path) -> None:
    done = triptych(
        *("check", onnx_folder, "--reference", checkpoint, "--json", "-"),
        *("--num-inference-steps", "2", "--seed", "3"),
    )
    assert done.returncode == 0, done.stderr
    report = only_document(done)
    assert isinstance(report, dict)
    assert report["verdict"] == "passed"
    assert report["settings"]["seeds"] == [3]
    assert {row["verdict"] for row in report["candidates"][0]["rows"]} == {"passed"}


def test_inspect_is_one_document(triptych: Cli, onnx_folder: Path, checkpoint: Path) -> None:
    for path, origin in ((onnx_folder, "triptych"), (checkpoint, "checkpoint")):
        done = triptych("inspect", path, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        summary = only_document(done)
        assert isinstance(summary, dict)
        assert summary["origin"] == origin


def test_inspect_for_people_names_every_component(triptych: Cli, onnx_folder: Path) -> None:
    done = triptych("inspect", onnx_folder)
    assert done.returncode == 0
    for name in ("text_encoder_2", "unet", "vae_decoder", "float32, opset 18", "leading"):
        assert name in done.stdout


def test_doctor_is_one_document(triptych: Cli) -> None:
    done = triptych("doctor", "--json")
    assert done.returncode == 0, done.stderr
    diagnosis = only_document(done)
    assert isinstance(diagnosis, dict)
    assert {"onnxruntime", "pytorch"} <= {engine["runtime"] for engine in diagnosis["engines"]}


def test_doctor_at_the_edge_says_what_is_missing() -> None:
    done = triptych_at_the_edge("doctor")
    assert done.returncode == 0, done.stderr
    assert "CPUExecutionProvider" in done.stdout
    assert "triptych[export]" in " ".join(done.stdout.split())


def test_demo_from_nothing_to_checked_pictures_and_again(triptych: Cli, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    output.mkdir()
    (output / "contact_sheet.png").write_text("an earlier demo's")

    done = triptych("demo", "--output", output)

    assert done.returncode == 0, done.stderr
    assert "passed: " in done.stdout
    assert f"{output / 'contact_sheet.png'}" in done.stdout
    sheet = pixels(output / "contact_sheet.png")
    engines = ("pytorch", "onnxruntime", "openvino", "coreml-reference")
    assert sheet.shape == (28 + len(engines) * (128 + 6), 170 + 5 * (128 + 6), 3)
    for row, runtime in enumerate(engines):
        for column, step in enumerate((1, 4, 8, 16, 32)):
            picture = pixels(output / "pictures" / runtime / f"step_{step:02d}.png")
            top, left = 28 + row * 134, 170 + column * 134
            np.testing.assert_array_equal(sheet[top : top + 128, left : left + 128], picture)
        drawn = read_scene(pixels(output / "pictures" / runtime / "final.png")).scene
        assert drawn is not None
        assert caption(drawn) == DEMO_PROMPT
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= len(engines)
    assert ".demo." not in page  # the folder that it was made in
    for run_file in output.glob("pictures/*/run.json"):
        assert Path(json.loads(run_file.read_text())["bundle"]["path"]).parent == output


def test_demo_leaves_another_folder_alone(triptych: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = triptych("demo", "--output", tmp_path)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- encode --------------------------------------------------------------------------------------


def test_encoded_prompts_draw_the_same_picture(
    first_run: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    texts, rest = SAMPLE[:4], SAMPLE[4:]
    skipped = ("encode", onnx_folder, *texts, "--clip-skip", "1", "--output", tmp_path / "skipped")
    assert triptych_at_the_edge(*skipped).returncode == 0
    file = tmp_path / "cat.safetensors"
    done = triptych_at_the_edge("encode", onnx_folder, *texts, "--output", file, "--json")
    assert done.returncode == 0, done.stderr
    document = only_document(done)
    assert isinstance(document, dict)
    assert set(document["tensors"]) == set(load_file(file))
    earlier = load_file(tmp_path / "skipped")
    assert not np.array_equal(earlier["prompt_embeds"], load_file(file)["prompt_embeds"])

    again = ("sample", onnx_folder, *rest, "--output", tmp_path / "again")
    done = triptych_at_the_edge(*again, "--prompt-embeds", file)
    assert done.returncode == 0, done.stderr
    final = pixels(tmp_path / "again" / "final.png")
    np.testing.assert_array_equal(final, pixels(first_run / "final.png"))


def test_prompts_and_their_embeddings_exclude_each_other(
    triptych: Cli, onnx_folder: Path, tmp_path: Path
) -> None:
    call = ("sample", onnx_folder, "--output", tmp_path / "x")
    file = ("--prompt-embeds", tmp_path / "no.safetensors")
    for options, told in (
        ((), "got none, want --prompt or --prompt-embeds"),
        (("--negative-prompt", "fog"), "got none, want --prompt or --prompt-embeds"),
        ((*file, "--prompt", "a cat"), "got --prompt-embeds and --prompt, want one of them"),
        ((*file, "--negative-prompt-2", "fog"), "got --prompt-embeds and --negative-prompt-2"),
        ((*file, "--clip-skip", "1"), "got --prompt-embeds and --clip-skip"),
        ((*file, "--prompt-weighting"), "got --prompt-embeds and --prompt-weighting"),
    ):
        done = triptych(*call, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in " ".join(done.stderr.split())
