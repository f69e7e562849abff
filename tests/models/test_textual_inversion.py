from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.errors import CheckpointError
from triptych.models.checkpoint import open_checkpoint
from triptych.models.modules import load_module
from triptych.models.stored_tensor import StoredTensor
from triptych.models.textual_inversion import EMBEDDINGS, read_textual_inversion
from triptych.workflows.compose import ComposeRequest, NamedInversion, compose_checkpoint

Networks = Mapping[str, Mapping[str, StoredTensor]]


@pytest.fixture(scope="module")
def networks(checkpoint: Path) -> Networks:
    opened = open_checkpoint(checkpoint)
    return {
        name: opened.network_tensors(name) for name in ("unet", "text_encoder", "text_encoder_2")
    }


def saved(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / "a-file.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "given", "token", "text_encoders"),
    [
        ({"<cat>": torch.zeros(32)}, None, "<cat>", {"text_encoder"}),
        ({"<cat>": torch.zeros(2, 48)}, None, "<cat>", {"text_encoder_2"}),
        ({"<cat>": torch.zeros(2, 48)}, "<dog>", "<dog>", {"text_encoder_2"}),
        ({"emb_params": torch.zeros(2, 32)}, None, "a-file", {"text_encoder"}),
        (
            {"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)},
            None,
            "a-file",
            {"text_encoder", "text_encoder_2"},
        ),
        ({"clip_g": torch.zeros(2, 48)}, "x", "x", {"text_encoder_2"}),
    ],
)
def test_every_layout_is_read(
    tensors: dict[str, torch.Tensor],
    given: str | None,
    token: str,
    text_encoders: set[str],
    networks: Networks,
    tmp_path: Path,
) -> None:
    found = read_textual_inversion(saved(tmp_path, tensors), networks, token=given)
    assert found.token == token
    assert set(found.vectors) == text_encoders


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "got no tensors"),
        ({"a": torch.zeros(32), "b": torch.zeros(32)}, "got a, b, want a textual inversion"),
        ({"a": torch.zeros(768)}, "want vectors of this model's width: 32 for text_encoder"),
        ({"clip_g": torch.zeros(2, 32)}, "'clip_g': got [2, 32]"),
        ({"a": torch.zeros(1, 2, 32)}, "got [1, 2, 32]"),
    ],
)
def test_what_is_none_for_this_model_is_refused(
    tensors: dict[str, torch.Tensor], message: str, networks: Networks, tmp_path: Path
) -> None:
    path = saved(tmp_path, tensors)
    with pytest.raises(CheckpointError) as caught:
        read_textual_inversion(path, networks, token=None)
    assert message in str(caught.value)


def compose(checkpoint: Path, folder: Path, *inversions: NamedInversion) -> Path:
    request = ComposeRequest(checkpoint=checkpoint, textual_inversions=inversions)
    return compose_checkpoint(request, folder / "made").folder


def test_vectors_follow_the_last_token(checkpoint: Path, tmp_path: Path) -> None:
    vectors = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    file = saved(tmp_path, {"<cat>": vectors})
    made = open_checkpoint(compose(checkpoint, tmp_path, NamedInversion(path=file)))
    before, after = (
        load_module(opened, "text_encoder_2", dtype=torch.float32).state_dict()
        for opened in (open_checkpoint(checkpoint), made)
    )
    name = f"encoder.{EMBEDDINGS}"
    assert torch.equal(after[name], torch.cat([before[name], vectors]))
    assert made.stored_tensors("text_encoder") == open_checkpoint(checkpoint).stored_tensors(
        "text_encoder"
    )


@pytest.mark.parametrize("token", ["cat</w>", "<|endoftext|>", " "])
def test_a_token_that_is_there_is_refused(token: str, checkpoint: Path, tmp_path: Path) -> None:
    inversion = NamedInversion(path=saved(tmp_path, {"x": torch.zeros(32)}), token=token)
    with pytest.raises(CheckpointError, match=r"Name another: TOKEN=a-file\.safetensors"):
        compose(checkpoint, tmp_path, inversion)


def test_one_token_cannot_be_added_twice(checkpoint: Path, tmp_path: Path) -> None:
    inversion = NamedInversion(path=saved(tmp_path, {"x": torch.zeros(32)}))
    with pytest.raises(CheckpointError, match="got the token 'x'"):
        compose(checkpoint, tmp_path, inversion, inversion)
