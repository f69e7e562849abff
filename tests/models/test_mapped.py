"""Weights in another dtype that are in files, or converted as they are used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from triptych.models import mapped
from triptych.models.mapped import kept_on_disk, widen_on_use
from triptych.models.stored_tensor import StoredTensor

STORED = {
    dtype: StoredTensor(file=Path("weights.safetensors"), key="weight", shape=(7, 5), dtype=word)
    for dtype, word in ((torch.float16, "F16"), (torch.float32, "F32"))
}


def test_a_converted_weight_is_equal_and_leaves_no_file(tmp_path: Path) -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).half()
    converted = kept_on_disk(weight, STORED[weight.dtype], torch.float32, scratch=tmp_path)
    assert converted.dtype == torch.float32
    assert torch.equal(converted, weight.float())
    assert not list(tmp_path.iterdir())


def test_a_weight_of_the_right_dtype_is_not_copied(tmp_path: Path) -> None:
    weight = torch.ones(3)
    kept = kept_on_disk(weight, STORED[weight.dtype], torch.float32, scratch=tmp_path)
    assert kept.data_ptr() == weight.data_ptr()


def test_a_weight_that_was_made_is_put_on_the_disk(tmp_path: Path) -> None:
    weight = torch.ones(7, 5)
    stored = replace(STORED[torch.float32], rows=(0, 7))
    kept = kept_on_disk(weight, stored, torch.float32, scratch=tmp_path)
    assert kept.data_ptr() != weight.data_ptr()
    assert torch.equal(kept, weight)


@pytest.mark.parametrize("threshold", [0, 40, 1 << 30])
def test_layers_compute_what_widened_ones_do(
    threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "_WIDENED_AT_ONCE", threshold)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).half()
    network.requires_grad_(requires_grad=False)
    stored = {name: weight.data_ptr() for name, weight in network.named_parameters()}
    feed = torch.randn(4, 6)
    expected = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    expected.load_state_dict({name: value.float() for name, value in network.state_dict().items()})
    widen_on_use(network, torch.float32)
    for _ in range(2):
        np.testing.assert_array_equal(network(feed).numpy(), expected(feed).detach().numpy())
    for name, weight in network.named_parameters():
        is_large = weight.numel() >= threshold
        assert (weight.data_ptr() == stored[name]) == is_large, name
        assert weight.dtype == (torch.float16 if is_large else torch.float32)


def test_a_layer_that_fails_forgets_its_wide_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_WIDENED_AT_ONCE", 0)
    layer = nn.Linear(6, 8).half().requires_grad_(requires_grad=False)
    widen_on_use(layer, torch.float32)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(4, 5))
    assert layer.weight.dtype == torch.float16
