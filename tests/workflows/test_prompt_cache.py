"""What is encoded once is not encoded again, unless anything that decides it has changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.store import file_sha256
from triptych.errors import OutputError
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.runtimes.pytorch import make_runtime as make_pytorch
from triptych.sampling.pipeline import encode, prepare
from triptych.sampling.prompt_encoding import EncodedPrompts, Prompts
from triptych.sampling.settings import Settings
from triptych.types import ComponentName
from triptych.workflows.prompt_cache import PromptCache

SETTINGS = RuntimeSettings()
RUNTIME = OnnxRuntime(settings=SETTINGS)
PROMPTS = Prompts(prompt=("a cat",), negative_prompt=("a dog " * 80,))


def cache(folder: Path, settings: RuntimeSettings = SETTINGS) -> PromptCache:
    return PromptCache(folder=folder / "cache", settings=settings)


def same(one: EncodedPrompts, other: EncodedPrompts) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in (
            "encoder_hidden_states", "text_embeds",
            "negative_encoder_hidden_states", "negative_text_embeds",
        )
    ) and all(
        np.array_equal(one.input_ids[name], other.input_ids[name]) for name in one.input_ids
    )  # fmt: skip


def test_the_second_time_nothing_is_opened_and_the_same_comes_back(
    onnx_bundle: Bundle, tmp_path: Path, opened: list[ComponentName]
) -> None:
    expected, ran = encode(onnx_bundle, RUNTIME, PROMPTS)
    del opened[:]
    first, told_first = cache(tmp_path).encode(onnx_bundle, RUNTIME, PROMPTS)
    assert opened == ["text_encoder", "text_encoder_2"]
    again, told_again = cache(tmp_path).encode(onnx_bundle, RUNTIME, PROMPTS)
    assert opened == ["text_encoder", "text_encoder_2"]
    for found in (first, again):
        assert same(found, expected)
        assert found.num_truncated == expected.num_truncated
    assert told_first == ran
    (entry,) = (tmp_path / "cache").iterdir()
    for name, execution in told_again.items():
        assert dict(execution.details) == {**ran[name].details, "prompt_cache": entry.stem}


@pytest.mark.parametrize(
    "prompts",
    [
        replace(PROMPTS, prompt=("a cat ",)),
        replace(PROMPTS, prompt_2=("a cat",)),
        replace(PROMPTS, negative_prompt=None),
        replace(PROMPTS, prompt_weighting=True),
        replace(PROMPTS, prompt=("a cat", "a cat"), negative_prompt=("", "")),
    ],
    ids=["text", "second text", "no negative", "weighting", "two"],
)
def test_other_prompts_are_encoded(
    prompts: Prompts, onnx_bundle: Bundle, tmp_path: Path, opened: list[ComponentName]
) -> None:
    cache(tmp_path).encode(onnx_bundle, RUNTIME, PROMPTS)
    del opened[:]
    found, _ = cache(tmp_path).encode(onnx_bundle, RUNTIME, prompts)
    assert opened
    assert same(found, encode(onnx_bundle, RUNTIME, prompts)[0])


def test_other_settings_are_another_entry(
    onnx_bundle: Bundle, tmp_path: Path, opened: list[ComponentName]
) -> None:
    for settings in (SETTINGS, replace(SETTINGS, num_threads=1)):
        del opened[:]
        cache(tmp_path, settings).encode(onnx_bundle, RUNTIME, PROMPTS)
        assert opened
    del opened[:]
    elsewhere = replace(SETTINGS, cache_dir=tmp_path)  # which changes no number
    cache(tmp_path, elsewhere).encode(onnx_bundle, RUNTIME, PROMPTS)
    assert not opened


@pytest.mark.parametrize("manifest", [True, False], ids=["bundle", "foreign folder"])
def test_other_weights_are_another_entry(
    manifest: bool,  # noqa: FBT001
    onnx_folder: Path,
    tmp_path: Path,
    opened: list[ComponentName],
) -> None:
    other = tmp_path / "other"
    shutil.copytree(onnx_folder, other)
    if not manifest:
        (other / "triptych.json").unlink()
    cache(tmp_path).encode(open_bundle(other), RUNTIME, PROMPTS)
    del opened[:]
    cache(tmp_path).encode(open_bundle(other), RUNTIME, PROMPTS)
    assert not opened
    graph = other / "text_encoder_2" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x9a\x06\x02hi")  # a field that protobuf skips
    if manifest:
        text = (other / "triptych.json").read_text()
        old = file_sha256(onnx_folder / "text_encoder_2" / "model.onnx")
        assert old in text
        text = text.replace(old, file_sha256(graph))
        size = onnx_folder.joinpath("text_encoder_2", "model.onnx").stat().st_size
        (other / "triptych.json").write_text(text.replace(str(size), str(graph.stat().st_size)))
    cache(tmp_path).encode(open_bundle(other), RUNTIME, PROMPTS)
    assert opened


def test_a_checkpoint_is_known_by_its_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    runtime = make_pytorch(SETTINGS)
    first, _ = cache(tmp_path).encode(open_bundle(other), runtime, PROMPTS)
    weights = other / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file(
        {name: 1.01 * tensor for name, tensor in tensors.items()},
        weights,
        metadata={"format": "pt"},
    )
    second, told = cache(tmp_path).encode(open_bundle(other), runtime, PROMPTS)
    assert not same(first, second)
    assert all("prompt_cache" not in execution.details for execution in told.values())
    monkeypatch.setattr("triptych.workflows.prompt_cache.encode", None)
    third, _ = cache(tmp_path).encode(open_bundle(other), runtime, PROMPTS)
    assert same(second, third)


@pytest.mark.parametrize("damage", ["cut", "emptied", "NaN", "stranger"])
def test_a_damaged_entry_is_made_anew(
    damage: str, onnx_bundle: Bundle, tmp_path: Path, opened: list[ComponentName]
) -> None:
    expected, _ = cache(tmp_path).encode(onnx_bundle, RUNTIME, PROMPTS)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    match damage:
        case "cut":
            entry.write_bytes(whole[: len(whole) // 2])
        case "emptied":
            entry.write_bytes(b"")
        case "NaN":
            entry.write_bytes(whole[:-4] + np.float32(np.nan).tobytes())
        case _:
            save_file({"text_embeds": np.zeros(1, np.float32)}, entry)
    for are_opened in (True, False):
        del opened[:]
        found, _ = cache(tmp_path).encode(onnx_bundle, RUNTIME, PROMPTS)
        assert bool(opened) is are_opened
        assert same(found, expected)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_a_folder_that_cannot_be_written_to_is_told(onnx_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="want to keep encoded prompts there"):
        cache(tmp_path).encode(onnx_bundle, RUNTIME, PROMPTS)


def test_a_run_takes_what_is_kept(
    onnx_bundle: Bundle, tmp_path: Path, opened: list[ComponentName]
) -> None:
    settings = Settings(prompts=PROMPTS, num_inference_steps=2, height_px=64, width_px=64)
    whole = prepare(onnx_bundle, RUNTIME, settings)
    for _ in range(2):
        del opened[:]
        kept = prepare(onnx_bundle, RUNTIME, settings, encoder=cache(tmp_path).encode)
        assert same(kept.encoded, whole.encoded)
    assert not opened
