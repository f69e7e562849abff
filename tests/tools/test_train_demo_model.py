"""The parts of the demo model's training; all of it takes hours."""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from triptych.scenes.drawing import draw
from triptych.scenes.scene import Scene, caption, iter_scenes
from triptych.testing.demo_model import DEMO_MODEL

TOOL = Path(__file__).parents[2] / "tools" / "train_demo_model"
MODULES = ("architecture", "autoencoder", "averages", "denoiser", "evaluation", "examples", "run")
SCENE = Scene(shape="triangle", color="red", size="large", place="top", background="white")
MIDDLE = Scene(shape="square", color="red", size="small", place="center", background="black")
HALF_SIDE_PX = 0.92 * 32 / 2


@pytest.fixture(scope="module")
def tool() -> Iterator[dict[str, ModuleType]]:
    """Its modules, which see each other by their plain names."""
    sys.path.insert(0, str(TOOL))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(TOOL))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def vae(tool: dict[str, ModuleType]) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(**tool["architecture"].VAE)
    tool["averages"].start_from_averages(vae)
    return vae


def _pictures(count: int) -> torch.Tensor:
    drawn = np.stack([draw(scene) for scene in list(iter_scenes())[:: 2240 // count][:count]])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def test_the_autoencoder_starts_with_the_colours_of_pictures(vae: AutoencoderKL) -> None:
    """From random weights the correlation is near zero."""
    pictures = _pictures(16)
    returned = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    for channel in range(3):
        pair = torch.stack([pictures[:, channel].flatten(), returned[:, channel].flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.9


@torch.no_grad()
def test_equalising_latents_changes_no_picture(
    tool: dict[str, ModuleType], vae: AutoencoderKL
) -> None:
    pictures = _pictures(8)
    latents = vae.encode(pictures).latent_dist.mean
    before = vae.decode(latents).sample

    changed = tool["autoencoder"].equalise_latents(vae, latents)

    torch.testing.assert_close(vae.encode(pictures).latent_dist.mean, changed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(changed).sample, before, atol=1e-4, rtol=1e-4)
    deviations = changed.std(dim=(0, 2, 3))
    torch.testing.assert_close(deviations, deviations.mean().expand(4), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(changed.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def _line_after(
    tool: dict[str, ModuleType], folder: Path, *, stops: tuple[int | None, ...]
) -> dict[str, torch.Tensor]:
    """Train a line for 600 steps, ended at each stop and taken up again: saves are 500 apart."""
    folder.mkdir()
    stage = tool["run"].Stage(
        name="line", seed=5, steps=600, decay_steps=600, learning_rate=1e-2, ema_decay=0.99
    )
    weights: dict[str, torch.Tensor] = {}
    for stop in stops:
        torch.manual_seed(0)
        line = torch.nn.Linear(1, 1)
        with nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
            tool["run"].train(line, partial(_losses, line, stop), stage=stage, folder=folder)
        weights = line.state_dict()
    return weights


def _losses(
    line: torch.nn.Linear, stop: int | None, step: int, generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    if step == stop:
        raise KeyboardInterrupt
    inputs = torch.from_numpy(generator.standard_normal((8, 1), np.float32))
    return {"loss": (line(inputs) - 3 * inputs).square().mean()}


def test_training_that_was_interrupted_ends_as_if_it_had_not_been(
    tool: dict[str, ModuleType], tmp_path: Path
) -> None:
    whole = _line_after(tool, tmp_path / "whole", stops=(None,))
    resumed = _line_after(tool, tmp_path / "resumed", stops=(520, 580, None))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    lines = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < 0.1 * json.loads(lines[0])["loss"]


def test_training_goes_on_from_the_model_that_comes_along(
    tool: dict[str, ModuleType], tmp_path: Path
) -> None:
    """Its own words, too: with other token ids its text encoders would be worth nothing."""
    networks = tool["architecture"].make_networks(seed=0, vocabulary=tmp_path)
    tool["architecture"].load_networks(networks, DEMO_MODEL)
    kept = load_file(DEMO_MODEL / "unet" / "diffusion_pytorch_model.safetensors")
    found = networks.unet.state_dict()
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name].half(), value) for name, value in kept.items())
    assert networks.vae.config.scaling_factor != 1
    for name, tokenizer in networks.tokenizers.items():
        assert tokenizer.get_vocab() == CLIPTokenizer.from_pretrained(DEMO_MODEL / name).get_vocab()


def test_partial_captions_leave_out_and_add_nothing(tool: dict[str, ModuleType]) -> None:
    generator = np.random.default_rng(0)
    seen = {tool["examples"].partial_caption(SCENE, generator) for _ in range(400)}
    assert caption(SCENE) in seen
    assert "a shape" in seen
    assert "a red triangle at the top" in seen
    words = set(caption(SCENE).split()) | {"shape"}
    assert all(set(text.split()) <= words for text in seen)


def test_examples_of_low_resolution_and_crops_say_what_they_are(
    tool: dict[str, ModuleType],
) -> None:
    generator = np.random.default_rng(0)
    sharp = draw(SCENE)
    blurred, ids = tool["examples"]._of_low_resolution(sharp, generator)
    assert blurred.shape == sharp.shape
    assert ids[0] == ids[1] < 128
    assert ids[2:] == (0, 0, 128, 128)
    assert np.abs(np.diff(blurred.astype(float), axis=0)).max() < 224  # no edge from white to red
    for _ in range(8):
        part, ids = tool["examples"]._cropped(draw(MIDDLE), generator)
        assert part.shape == sharp.shape
        assert ids[0] == ids[1] > 128
        assert 0 <= min(ids[2:4]) <= max(ids[2:4]) <= ids[0] - 128
        enlarged = ids[0] / 128
        middle, half = 64 * enlarged - np.array(ids[2:4]), HALF_SIDE_PX * enlarged
        within = np.clip([middle - half, middle + half], 0, 128)
        red = np.argwhere(part[..., 0] > 128)
        assert np.abs(red.min(axis=0) - within[0]).max() <= 1
        assert np.abs(red.max(axis=0) + 1 - within[1]).max() <= 1


def test_the_decoder_s_stage_leaves_latents_alone(
    tool: dict[str, ModuleType], vae: AutoencoderKL, tmp_path: Path
) -> None:
    pictures = np.stack([draw(SCENE), draw(MIDDLE)])
    whole, blurred = tool["examples"].WHOLE, (32, 32, 0, 0, 128, 128)
    examples = tool["examples"].Examples(
        scenes=(SCENE, MIDDLE), pictures=pictures, time_ids=(whole, blurred)
    )
    latents = tool["autoencoder"].encode_all(vae, pictures)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    stage = tool["run"].Stage(
        name="decoder", seed=0, steps=2, decay_steps=2, learning_rate=1e-3, ema_decay=0
    )

    tool["autoencoder"].train_decoder(
        vae, examples, latents, edge_weight=8, stage=stage, folder=tmp_path
    )

    changed = {
        name.split(".")[0]
        for name, value in vae.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"decoder", "post_quant_conv"}


def test_what_is_learned_from_has_no_scene_that_is_held_out(
    tool: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [scene for scene in iter_scenes() if scene.color == "red" and scene.place == "top"]
    monkeypatch.setattr(tool["examples"], "iter_scenes", lambda: iter(some))
    examples = tool["examples"].make_examples(seed=0)
    held_out = {scene for scene in some if tool["examples"].is_held_out(scene)}
    assert held_out
    assert set(examples.scenes) == set(some) - held_out
    assert len(examples.pictures) == len(examples.time_ids) == len(examples.scenes)
