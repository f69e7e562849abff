"""What a folder holds, and every way in which it is not whole."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from triptych.bundle.bundle import Bundle
from triptych.errors import BundleError, CheckpointError
from triptych.types import FormatName
from triptych.workflows.inspect import Summary, inspect_path

COMPONENTS = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"]


def strict_json(summary: Summary) -> dict[str, object]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    document = json.loads(json.dumps(summary.to_json()), parse_constant=refuse)
    assert isinstance(document, dict)
    return document


@pytest.fixture
def ours(onnx_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(onnx_folder, tmp_path / "bundle")


@pytest.fixture
def foreign(ours: Path) -> Path:
    (ours / "triptych.json").unlink()
    return ours


@pytest.fixture
def copied_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


# --- what it holds -------------------------------------------------------------------------------


def test_our_bundle(onnx_folder: Path, checkpoint: Path) -> None:
    summary = inspect_path(onnx_folder)

    assert (summary.format, summary.origin, summary.kind) == ("onnx", "triptych", "base")
    assert summary.precision == "fp32"
    assert {"python", "torch", "onnx", "triptych"} <= set(summary.toolchain)
    assert summary.scheduler["class"] == "EulerDiscreteScheduler"
    assert summary.scheduler["timestep_spacing"] == "leading"
    assert [part.name for part in summary.components] == COMPONENTS
    assert summary.problems == ()
    unet = summary.components[2]
    weights = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert unet.num_parameters is not None
    assert unet.num_parameters >= sum(weight.size for weight in weights.values())
    assert unet.opset == 18
    assert unet.verified is not None
    assert unet.verified < 1e-5
    assert unet.size_bytes == sum(path.stat().st_size for path in (onnx_folder / "unet").iterdir())
    assert {port.name for port in unet.inputs} >= {"sample", "timestep"}
    assert [port.name for port in unet.outputs] == ["out_sample"]


def test_a_foreign_bundle_promises_nothing(foreign: Path) -> None:
    summary = inspect_path(foreign)
    assert (summary.format, summary.origin, summary.precision) == ("onnx", "foreign", None)
    assert summary.toolchain == {}
    assert {part.verified for part in summary.components} == {None}
    assert summary.problems == ()


def test_a_checkpoint(checkpoint: Path) -> None:
    summary = inspect_path(checkpoint)
    assert (summary.format, summary.origin) == ("diffusers", "checkpoint")
    assert summary.problems == ()
    parts = {part.name: part for part in summary.components}
    assert list(parts) == COMPONENTS
    weights = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert parts["unet"].num_parameters == sum(weight.size for weight in weights.values())
    assert set(parts["unet"].weight_dtypes) == {"float32"}
    vae = load_file(checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    halves = (parts["vae_encoder"].num_parameters, parts["vae_decoder"].num_parameters)
    assert sum(count or 0 for count in halves) == sum(weight.size for weight in vae.values())


def test_a_preview_decoder_is_a_component_like_the_others(
    preview_checkpoint: Path, preview_bundles: Mapping[FormatName, Bundle]
) -> None:
    summary = inspect_path(preview_checkpoint)
    assert [part.name for part in summary.components] == [*COMPONENTS, "preview_decoder"]
    assert summary.problems == ()
    for name in ("onnx", "openvino", "coreml"):
        (part,) = inspect_path(preview_bundles[name].folder).components
        assert part.num_parameters == summary.components[-1].num_parameters
        assert part.verified is not None
        assert part.verified < 1e-5


def test_json_is_strict_and_says_the_same(onnx_folder: Path) -> None:
    document = strict_json(inspect_path(onnx_folder))
    assert document["path"] == str(onnx_folder)
    assert document["problems"] == []
    components = document["components"]
    assert isinstance(components, list)
    assert [part["name"] for part in components] == COMPONENTS
    assert components[2]["inputs"][1] == {"name": "timestep", "dtype": "float32", "shape": []}


# --- what is wrong -------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("unet/model.onnx", flip_a_byte, "unet/model.onnx: content changed"),
        ("unet/model.onnx", cut, "unet/model.onnx: truncated"),
        ("unet/model.onnx", Path.unlink, "unet/model.onnx: missing"),
        ("tokenizer_2/merges.txt", Path.unlink, "tokenizer_2/merges.txt: missing"),
        ("unet", shutil.rmtree, "unet/config.json: missing; unet/model.onnx: missing"),
    ],
)
def test_damage_to_our_bundle_is_named(
    ours: Path, name: str, damage: Callable[[Path], None], problem: str
) -> None:
    damage(ours / name)
    try:
        found = "\n".join(inspect_path(ours).problems)
    except BundleError as error:  # when too little is left to look at
        found = str(error)
    assert problem in found


def test_all_damage_is_named(ours: Path) -> None:
    cut(ours / "unet" / "model.onnx")
    (ours / "scheduler" / "scheduler_config.json").unlink()
    problems = "\n".join(inspect_path(ours).problems)
    assert "unet/model.onnx: truncated" in problems
    assert "scheduler/scheduler_config.json: missing" in problems


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("vae_decoder/model.onnx", Path.unlink, "vae_decoder: not in this folder"),
        ("vae_decoder/model.onnx", cut, "vae_decoder/model.onnx"),
        ("tokenizer/merges.txt", Path.unlink, "tokenizer/merges.txt"),
        ("tokenizer_2", shutil.rmtree, "tokenizer_2"),
        ("scheduler/scheduler_config.json", Path.unlink, "scheduler/scheduler_config.json"),
    ],
)
def test_what_a_foreign_bundle_lacks_is_named(
    foreign: Path, name: str, damage: Callable[[Path], None], problem: str
) -> None:
    damage(foreign / name)
    (found,) = inspect_path(foreign).problems
    assert problem in found


def test_a_tokenizer_that_a_checkpoint_lacks_is_named(copied_checkpoint: Path) -> None:
    (copied_checkpoint / "tokenizer" / "vocab.json").unlink()
    (found,) = inspect_path(copied_checkpoint).problems
    assert "tokenizer/vocab.json" in found


def test_a_truncated_checkpoint(copied_checkpoint: Path) -> None:
    cut(copied_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.safetensors"):
        inspect_path(copied_checkpoint)


def test_a_checkpoint_of_pickles(copied_checkpoint: Path) -> None:
    weights = copied_checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*refused"):
        inspect_path(copied_checkpoint)


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="want a bundle"):
        inspect_path(tmp_path)


def test_the_folder_above_a_bundle_gets_a_hint(onnx_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"Did you mean .*onnx\?"):
        inspect_path(onnx_folder.parent)
