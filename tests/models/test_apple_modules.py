"""The networks with Apple's ports compute what they do with ours."""

from pathlib import Path

import pytest
import torch

from triptych.models.apple_modules import apple_module
from triptych.models.checkpoint import open_checkpoint
from triptych.models.modules import load_module
from triptych.parity.metrics import rel_l2
from triptych.types import ComponentName, CoreMlAttention


def load(checkpoint: Path, component: ComponentName) -> torch.nn.Module:
    return load_module(open_checkpoint(checkpoint), component, dtype=torch.float32)


@pytest.mark.parametrize("attention", ["original", "split-einsum"])
def test_a_unet_takes_its_text_as_apple_lays_it_out(
    attention: CoreMlAttention, checkpoint: Path
) -> None:
    torch.manual_seed(0)
    text = torch.randn(2, 77, 80)
    sample, embeds = torch.randn(2, 4, 9, 13), torch.randn(2, 64)
    ids = torch.tensor([[128.0, 96, 0, 0, 128, 96], [1024, 1024, 8, 0, 1024, 1024]])
    with torch.no_grad():
        (expected,) = load(checkpoint, "unet")(sample, torch.tensor(801.5), text, embeds, ids)
        apples = apple_module(load(checkpoint, "unet"), "unet", attention=attention)
        laid_out = text.transpose(1, 2).unsqueeze(2)
        actual = apples(sample, torch.full((2,), 801.5), laid_out, embeds, ids)
    assert rel_l2(actual.numpy(), expected.numpy()) < 2e-6


@pytest.mark.parametrize(
    ("component", "pooled_name", "hidden_name"),
    [
        ("text_encoder", "pooler_output", "hidden_states.2"),
        ("text_encoder_2", "text_embeds", "hidden_states.3"),
    ],
)
def test_a_text_encoder_gives_the_last_layer_but_one_and_its_pooled_output(
    component: ComponentName, pooled_name: str, hidden_name: str, checkpoint: Path
) -> None:
    module = load(checkpoint, component)
    ids = torch.arange(77)[None]
    with torch.no_grad():
        named = dict(zip(module.output_names, module(ids), strict=True))  # type: ignore[arg-type]
        hidden, pooled = apple_module(module, component, attention="original")(ids.float())
    assert torch.equal(hidden, named[hidden_name])
    assert torch.equal(pooled, named[pooled_name])


@pytest.mark.parametrize(
    ("component", "shape"), [("vae_encoder", (1, 3, 64, 40)), ("vae_decoder", (1, 4, 8, 5))]
)
def test_the_vae_is_only_renamed(
    component: ComponentName, shape: tuple[int, ...], checkpoint: Path
) -> None:
    module, tensor = load(checkpoint, component), torch.randn(shape)
    with torch.no_grad():
        actual = apple_module(module, component, attention="original")(tensor)
        assert torch.equal(actual, module(tensor)[0])
