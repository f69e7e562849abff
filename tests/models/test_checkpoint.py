import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from triptych.errors import CheckpointError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.modules import load_module
from triptych.models.stored_tensor import read_header
from triptych.types import ComponentName

UNET_FILE = Path("unet") / "diffusion_pytorch_model.safetensors"
VAE_FILE = Path("vae") / "diffusion_pytorch_model.safetensors"
TEXT_FILE = Path("text_encoder") / "model.safetensors"


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copied")


def weights_of(folder: Path, component: ComponentName) -> dict[str, torch.Tensor]:
    module = load_module(open_checkpoint(folder), component, dtype=torch.float32)
    return dict(module.state_dict())


def assert_same_weights(folder: Path, other: Path, component: ComponentName) -> None:
    found, expected = weights_of(folder, component), weights_of(other, component)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def refusal(folder: Path, *, variant: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, variant=variant)
    return str(caught.value)


def edit_weights(
    file: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(edit(tensors), file, metadata={"format": "pt"})


# Opening


def test_opening_reads_no_weights(copied: Path) -> None:
    expected = open_checkpoint(copied)
    for file in copied.rglob("*.safetensors"):
        file.write_bytes(b"")
    assert open_checkpoint(copied) == expected


def test_weights_are_described_from_the_header_alone(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    stored = opened.stored_tensors("unet")
    file = checkpoint / UNET_FILE
    assert opened.component_files("unet") == (file,)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tuple(tensor.shape) for name, tensor in load_file(file).items()
    }
    assert {tensor.dtype for tensor in stored.values()} == {"F32"}


def test_the_vaes_halves_share_a_file_but_no_tensor(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    encoder, decoder = (opened.stored_tensors(name) for name in ("vae_encoder", "vae_decoder"))
    assert not encoder.keys() & decoder.keys()
    assert encoder.keys() | decoder.keys() == load_file(checkpoint / VAE_FILE).keys()


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused_when_its_header_is_read(keep: int, copied: Path) -> None:
    file = copied / UNET_FILE
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match="want a whole safetensors file") as caught:
        open_checkpoint(copied).stored_tensors("unet")
    assert str(file) in str(caught.value)


def test_a_missing_file_is_refused_when_its_header_is_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="want a whole safetensors file"):
        list(read_header(tmp_path / "absent.safetensors"))


def test_a_component_that_the_model_lacks_is_refused(copied: Path) -> None:
    index = copied / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "text_encoder": [None, None]}))
    opened = open_checkpoint(copied)
    assert "text_encoder" not in opened.weight_files
    with pytest.raises(CheckpointError, match="no text_encoder in this base model"):
        opened.component_files("text_encoder")


def test_a_single_file_is_refused_with_what_to_do(checkpoint: Path) -> None:
    message = refusal(checkpoint / UNET_FILE)
    assert "single file" in message
    assert "triptych compose" in message


@pytest.mark.parametrize("name", ["absent", "unet"])
def test_a_folder_without_an_index_is_refused(name: str, checkpoint: Path) -> None:
    assert "no model_index.json" in refusal(checkpoint / name)


# Shards


@pytest.fixture
def sharded(copied: Path) -> Path:
    """The same checkpoint, its U-Net and first text encoder saved in shards."""
    unet = UNet2DConditionModel.from_pretrained(copied / "unet")
    encoder = CLIPTextModel.from_pretrained(copied / "text_encoder")
    (copied / UNET_FILE).unlink()
    (copied / TEXT_FILE).unlink()
    unet.save_pretrained(copied / "unet", max_shard_size="700KB")
    encoder.save_pretrained(copied / "text_encoder", max_shard_size="100KB")
    return copied


def test_shards_give_the_same_modules(sharded: Path, checkpoint: Path) -> None:
    opened = open_checkpoint(sharded)
    assert len(opened.component_files("unet")) > 2
    assert len(opened.component_files("text_encoder")) > 1
    assert_same_weights(sharded, checkpoint, "unet")
    assert_same_weights(sharded, checkpoint, "text_encoder")


def test_missing_shards_are_named(sharded: Path) -> None:
    first, second, *_ = open_checkpoint(sharded).component_files("unet")
    first.unlink()
    second.unlink()
    message = refusal(sharded)
    assert f"got no {first.name}, {second.name}, want all" in message


@pytest.mark.parametrize("name", ["../weights.safetensors", "/weights.safetensors", ""])
def test_shards_lie_beside_their_index(name: str, sharded: Path) -> None:
    index = sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    assert f"got the shard {name!r}" in refusal(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_a_map_is_refused(content: str, sharded: Path) -> None:
    index = sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    assert "no weight_map" in refusal(sharded)


# Variants


@pytest.fixture
def half(copied: Path) -> Path:
    """The same checkpoint with fp16 files beside the plain ones of every network but the VAE."""
    from transformers import CLIPTextModelWithProjection

    for name, kind in {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "vae": AutoencoderKL,
    }.items():
        network = kind.from_pretrained(copied / name).half()
        network.save_pretrained(copied / name, variant="fp16")
    return copied


def test_a_variant_is_taken_where_it_was_asked_for(half: Path) -> None:
    opened = open_checkpoint(half, variant="fp16")
    for component in opened.config.components:
        assert all(".fp16." in file.name for file in opened.component_files(component))
        assert {tensor.dtype for tensor in opened.stored_tensors(component).values()} == {"F16"}


def test_plain_weights_are_taken_where_nothing_was_asked_for(half: Path, checkpoint: Path) -> None:
    opened = open_checkpoint(half)
    assert all(".fp16." not in file.name for file in opened.component_files("unet"))
    assert_same_weights(half, checkpoint, "unet")


def test_fp16_weights_load_as_they_are_stored(half: Path) -> None:
    opened = open_checkpoint(half, variant="fp16")
    module = load_module(opened, "text_encoder", dtype=torch.float32)
    stored = load_file(half / "text_encoder" / "model.fp16.safetensors")
    for name, tensor in stored.items():
        assert torch.equal(module.get_parameter(f"encoder.{name}"), tensor.float())


def test_a_sharded_variant_is_found(half: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(half / "unet").half()
    (half / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    unet.save_pretrained(half / "unet", variant="fp16", max_shard_size="400KB")
    files = open_checkpoint(half, variant="fp16").component_files("unet")
    assert len(files) > 1
    assert all("fp16" in file.name for file in files)


@pytest.mark.parametrize("sharded_size", ["10GB", "400KB"])
def test_a_checkpoint_of_one_variant_alone_says_how_to_ask_for_it(
    sharded_size: str, half: Path
) -> None:
    unet = UNet2DConditionModel.from_pretrained(half / "unet").half()
    for file in (half / "unet").glob("*.safetensors"):
        file.unlink()
    unet.save_pretrained(half / "unet", variant="fp16", max_shard_size=sharded_size)
    message = refusal(half)
    assert "only as variant fp16, want plain ones" in message
    assert "--variant fp16" in message


def test_an_unknown_variant_is_told_which_there_are(half: Path) -> None:
    assert "only as variant fp16, want variant 'bf16' ones" in refusal(half, variant="bf16")


def test_a_variant_that_no_file_has_is_refused(checkpoint: Path) -> None:
    message = refusal(checkpoint, variant="fp16")
    assert "got config.json, model.safetensors" in message
    assert "want variant 'fp16' safetensors weights" in message


# Weights that are no safetensors


@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pth"])
def test_pickle_files_are_refused_with_what_to_do(suffix: str, copied: Path) -> None:
    (copied / UNET_FILE).rename(copied / "unet" / f"diffusion_pytorch_model.{suffix}")
    message = refusal(copied)
    assert f"got diffusion_pytorch_model.{suffix}, want safetensors" in message
    assert "safe_serialization=True" in message


def test_a_pickle_beside_safetensors_is_not_in_the_way(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert open_checkpoint(copied).component_files("unet") == (copied / UNET_FILE,)


def test_a_network_without_weights_is_refused(copied: Path) -> None:
    (copied / UNET_FILE).unlink()
    assert "got config.json, want plain safetensors weights" in refusal(copied)


# Weights that do not fit


def loading_error(folder: Path, component: ComponentName) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_module(open_checkpoint(folder), component, dtype=torch.float32)
    return str(caught.value)


def test_a_missing_weight_is_named(copied: Path) -> None:
    edit_weights(
        copied / UNET_FILE,
        lambda tensors: {name: value for name, value in tensors.items() if name != "conv_in.bias"},
    )
    message = loading_error(copied, "unet")
    assert "got 1 missing ['unet.conv_in.bias'] and 0 unknown" in message


def test_an_unknown_weight_is_named(copied: Path) -> None:
    edit_weights(copied / UNET_FILE, lambda tensors: {**tensors, "extra.scale": torch.zeros(2)})
    assert "unknown ['unet.extra.scale']" in loading_error(copied, "unet")


def test_a_weight_of_another_shape_is_named_with_both_shapes(copied: Path) -> None:
    edit_weights(copied / UNET_FILE, lambda tensors: {**tensors, "conv_in.bias": torch.zeros(9)})
    message = loading_error(copied, "unet")
    assert "'unet.conv_in.bias': got [9], want [8]" in message


def test_position_ids_of_old_text_encoders_are_no_weights(copied: Path, checkpoint: Path) -> None:
    name = "text_model.embeddings.position_ids"
    edit_weights(
        copied / TEXT_FILE, lambda tensors: {**tensors, name: torch.arange(77).reshape(1, 77)}
    )
    assert_same_weights(copied, checkpoint, "text_encoder")


def old_name(name: str) -> str:
    """A tensor's name in a VAE saved before diffusers 0.18."""
    if ".attentions." not in name:
        return name
    for new, old in {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def test_a_vae_with_the_old_attention_names_loads_the_same(copied: Path, checkpoint: Path) -> None:
    edit_weights(
        copied / VAE_FILE,
        lambda tensors: {old_name(name): value for name, value in tensors.items()},
    )
    names = load_file(copied / VAE_FILE).keys()
    assert len([name for name in names if re.search(r"query|key|value|proj_attn", name)]) == 16
    assert_same_weights(copied, checkpoint, "vae_encoder")
    assert_same_weights(copied, checkpoint, "vae_decoder")
