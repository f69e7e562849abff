"""triptych compose, and what it is composed of as options of export."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from triptych.bundle.bundle import open_bundle
from triptych.cli.app import app
from triptych.cli.compose_options import parse_inversions, parse_loras
from triptych.errors import CheckpointError, UsageError
from triptych.models.tokenizer import load_tokenizer
from triptych.workflows.compose import NamedInversion, ScaledLora

TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "ink.safetensors"
    factors = {"lora_A": torch.ones(2, 80), "lora_B": torch.ones(16, 2)}
    save_file({f"unet.{TO_K}.{name}.weight": factor for name, factor in factors.items()}, path)
    return path


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_compose_says_what_it_made(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    said = run("compose", checkpoint, tmp_path / "made", "--lora", f"{lora}:0.5")
    assert "SDXL base of checkpoint tiny, lora ink.safetensors at 0.5" in said
    described = run("inspect", tmp_path / "made")
    assert "made of: checkpoint tiny, lora ink.safetensors at 0.5" in described


def test_compose_says_it_as_json(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    document = json.loads(
        run("compose", checkpoint, tmp_path / "made", "--lora", lora, "--vae", checkpoint, "--json")
    )
    assert document["kind"] == "base"
    assert [source["role"] for source in document["sources"]] == ["checkpoint", "vae", "lora"]
    assert document["sources"][2]["scale"] == 1.0
    assert set(document["sources"][2]["sha256"]) == {"ink.safetensors"}


@pytest.mark.slow
def test_export_composes_for_its_own_duration(checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    export = ("export", checkpoint, tmp_path / "out", "--to", "onnx", "--num-jobs", "1")
    run(*export, "--component", "vae_decoder", "--lora", f"{lora}:-1")
    manifest = open_bundle(tmp_path / "out" / "onnx").manifest
    assert manifest is not None
    assert [source.text() for source in manifest.sources] == [
        "checkpoint tiny",
        "lora ink.safetensors at -1",
    ]


def test_an_unmatched_lora_ends_the_command(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_nowhere.lora_down.weight": torch.zeros(1, 1)}, path)
    with pytest.raises(CheckpointError, match="changes no weight"):
        run("compose", checkpoint, tmp_path / "made", "--lora", path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("ink.safetensors", "ink.safetensors", 1.0),
        ("ink.safetensors:0.8", "ink.safetensors", 0.8),
        ("ink.safetensors:-1e-1", "ink.safetensors", -0.1),
        ("ink.safetensors:0", "ink.safetensors", 0.0),
        (r"C:\ink.safetensors", r"C:\ink.safetensors", 1.0),
        (r"C:\ink.safetensors:0.5", r"C:\ink.safetensors", 0.5),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("ink.safetensors:", "ink.safetensors:", 1.0),
        ("2", "2", 1.0),
    ],
)
def test_a_lora_s_scale_follows_its_last_colon(text: str, path: str, scale: float) -> None:
    assert parse_loras([text]) == (ScaledLora(path=Path(path), scale=scale),)


@pytest.mark.skipif(os.name == "nt", reason="a colon is no part of a name there")
def test_a_path_that_exists_as_written_has_no_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("step:10").touch()
    assert parse_loras(["step:10"]) == (ScaledLora(path=Path("step:10")),)


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
def test_a_scale_that_is_not_finite_is_refused(scale: str) -> None:
    with pytest.raises(UsageError, match="want a finite number"):
        parse_loras([f"ink.safetensors:{scale}"])


def test_compose_adds_tokens(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat>": torch.zeros(2, 32)}, path)
    made = tmp_path / "made"
    said = run("compose", checkpoint, made, "--textual-inversion", f"<dog>={path}")
    assert "textual inversion learned_embeds.safetensors as <dog>" in said
    assert load_tokenizer(made / "tokenizer").literals["<dog>"] == (898, 899)


@pytest.mark.parametrize(
    ("text", "path", "token"),
    [
        ("cat.safetensors", "cat.safetensors", None),
        ("<cat>=cat.safetensors", "cat.safetensors", "<cat>"),
        ("cat=a=b.safetensors", "a=b.safetensors", "cat"),
        ("=cat.safetensors", "=cat.safetensors", None),
        ("cat=", "cat=", None),
    ],
)
def test_a_token_stands_before_the_first_equals_sign(
    text: str, path: str, token: str | None
) -> None:
    assert parse_inversions([text]) == (NamedInversion(path=Path(path), token=token),)
