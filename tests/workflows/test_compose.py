"""Composed checkpoints: what is written, what is read through it, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from triptych.bundle.bundle import open_bundle
from triptych.bundle.store import file_sha256
from triptych.errors import CheckpointError, UsageError
from triptych.models.checkpoint import Checkpoint, open_checkpoint
from triptych.models.modules import load_module
from triptych.models.tokenizer import load_tokenizer
from triptych.testing import tiny_checkpoint, write_single_file
from triptych.types import ComponentName
from triptych.workflows.compose import ComposeRequest, compose_checkpoint, composed
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.inspect import inspect_path

UNET_FILE = Path("unet") / "diffusion_pytorch_model.safetensors"
VAE_FILE = Path("vae") / "diffusion_pytorch_model.safetensors"


def weights_of(checkpoint: Checkpoint, component: ComponentName) -> dict[str, torch.Tensor]:
    return dict(load_module(checkpoint, component, dtype=torch.float32).state_dict())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other weights. Read only."""
    return tiny_checkpoint(tmp_path_factory.mktemp("other") / "other", seed=1)


@pytest.fixture(scope="module")
def with_vae(checkpoint: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint with the other's VAE. Read only."""
    request = ComposeRequest(checkpoint=checkpoint, vae=other / "vae")
    return compose_checkpoint(request, tmp_path_factory.mktemp("composed") / "both")


def test_each_network_is_that_of_its_source(
    with_vae: Checkpoint, checkpoint: Path, other: Path
) -> None:
    base, lender = open_checkpoint(checkpoint), open_checkpoint(other)
    components: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder", "vae_decoder")
    for component in components:
        source = base if component == "text_encoder" else lender
        assert_same(weights_of(with_vae, component), weights_of(source, component))


def test_no_weight_is_copied_and_all_are_mapped(with_vae: Checkpoint) -> None:
    files = [path for path in with_vae.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in files) < 500_000
    assert all(tensor.is_plain for tensor in with_vae.stored_tensors("unet").values())


def test_it_is_opened_as_any_checkpoint_is(with_vae: Checkpoint, other: Path) -> None:
    bundle = open_bundle(with_vae.folder)
    assert bundle.format == "diffusers"
    assert with_vae.component_files("vae_decoder") == (other / VAE_FILE,)
    assert open_checkpoint(with_vae.folder) == with_vae


def test_its_summary_says_what_it_is_made_of(
    with_vae: Checkpoint, checkpoint: Path, other: Path
) -> None:
    summary = inspect_path(with_vae.folder)
    assert not summary.problems
    base, vae = summary.sources
    assert (base.role, base.name) == ("checkpoint", checkpoint.name)
    assert base.sha256[f"{checkpoint.name}/{UNET_FILE.as_posix()}"] == file_sha256(
        checkpoint / UNET_FILE
    )
    assert not any("vae" in name for name in base.sha256)
    assert dict(vae.sha256) == {f"vae/{VAE_FILE.name}": file_sha256(other / VAE_FILE)}
    sizes = {part.name: part.size_bytes for part in summary.components}
    plain = {part.name: part.size_bytes for part in inspect_path(checkpoint).components}
    assert 0 < sizes["vae_decoder"] < plain["vae_decoder"]


@pytest.mark.slow
def test_an_export_is_of_the_composed_weights_and_names_its_sources(
    with_vae: Checkpoint, other: Path, tmp_path: Path
) -> None:
    folder = export_bundles(
        ExportRequest(
            checkpoint=with_vae.folder,
            output=tmp_path,
            formats=["onnx"],
            components=["vae_decoder"],
            num_jobs=1,
        )
    )["onnx"]
    manifest = open_bundle(folder).manifest
    assert manifest is not None
    assert manifest.sources == inspect_path(with_vae.folder).sources
    assert dict(manifest.components[0].source_sha256) == {
        f"vae/{VAE_FILE.name}": file_sha256(other / VAE_FILE)
    }


def test_a_vae_s_config_comes_with_it(checkpoint: Path, other: Path, tmp_path: Path) -> None:
    fixed = shutil.copytree(other / "vae", tmp_path / "fp16-fix")
    path = fixed / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "force_upcast": False}))
    made = compose_checkpoint(ComposeRequest(checkpoint=checkpoint, vae=fixed), tmp_path / "made")
    assert not made.config.force_upcast


def in_original_layout(other: Path, folder: Path) -> Path:
    whole = load_file(write_single_file(other, folder / "whole.safetensors"))
    prefix = "first_stage_model."
    vae = {name.removeprefix(prefix): whole[name] for name in whole if name.startswith(prefix)}
    save_file(vae, folder / "sdxl_vae.safetensors")
    return folder / "sdxl_vae.safetensors"


VAE_PLACES: dict[str, Callable[[Path, Path], Path]] = {
    "checkpoint": lambda other, _: other,
    "diffusers file": lambda other, _: other / VAE_FILE,
    "diffusers file without config": lambda other, folder: Path(
        shutil.copy(other / VAE_FILE, folder)
    ),
    "original file": in_original_layout,
    "whole original file": lambda other, folder: write_single_file(
        other, folder / "whole.safetensors"
    ),
}


@pytest.mark.parametrize("place", VAE_PLACES)
def test_a_vae_is_found_wherever_it_lies(
    place: str, checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    vae = VAE_PLACES[place](other, tmp_path)
    made = compose_checkpoint(ComposeRequest(checkpoint=checkpoint, vae=vae), tmp_path / "made")
    expected = AutoencoderKL.from_pretrained(other / "vae").state_dict()
    found = weights_of(made, "vae_decoder") | weights_of(made, "vae_encoder")
    assert_same(found, dict(expected))


def refusal(request: ComposeRequest, output: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        compose_checkpoint(request, output)
    assert not output.exists()
    return str(caught.value)


def test_a_vae_of_other_channels_is_refused(checkpoint: Path, other: Path, tmp_path: Path) -> None:
    vae = shutil.copytree(other / "vae", tmp_path / "vae")
    path = vae / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "latent_channels": 16}))
    message = refusal(ComposeRequest(checkpoint=checkpoint, vae=vae), tmp_path / "made")
    assert "got 16, want this model's 4" in message


def test_a_vae_that_is_none_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    request = ComposeRequest(checkpoint=checkpoint, vae=checkpoint / UNET_FILE)
    assert "want a VAE's weights" in refusal(request, tmp_path / "made")
    request = ComposeRequest(checkpoint=checkpoint, vae=checkpoint / "unet")
    assert "got 'UNet2DConditionModel', want 'AutoencoderKL'" in refusal(request, tmp_path / "made")


def test_a_weight_that_does_not_fit_is_named_before_the_folder_appears(
    checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    tensors = load_file(other / VAE_FILE)
    file = tmp_path / "vae.safetensors"
    save_file({**tensors, "decoder.conv_in.bias": torch.zeros(3)}, file)
    message = refusal(ComposeRequest(checkpoint=checkpoint, vae=file), tmp_path / "made")
    assert "vae_decoder weight 'decoder.conv_in.bias': got [3]" in message


def test_composed_checkpoints_are_not_composed_again(
    with_vae: Checkpoint, other: Path, tmp_path: Path
) -> None:
    request = ComposeRequest(checkpoint=with_vae.folder, vae=other)
    assert "Compose everything at once" in refusal(request, tmp_path / "made")


def test_a_variant_of_a_composed_checkpoint_is_refused(with_vae: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="Leave --variant out"):
        open_checkpoint(with_vae.folder, variant="fp16")


def test_an_existing_folder_is_replaced_only_when_asked(
    checkpoint: Path, other: Path, tmp_path: Path
) -> None:
    output = tmp_path / "made"
    compose_checkpoint(ComposeRequest(checkpoint=checkpoint), output)
    request = ComposeRequest(checkpoint=checkpoint, vae=other)
    with pytest.raises(UsageError, match="--overwrite"):
        compose_checkpoint(request, output)
    made = compose_checkpoint(request, output, overwrite=True)
    assert made.component_files("vae_decoder") == (other / VAE_FILE,)


def test_nothing_is_composed_where_nothing_is_changed(checkpoint: Path) -> None:
    with composed(ComposeRequest(checkpoint=checkpoint, variant="fp16")) as found:
        assert found == (checkpoint, "fp16")


def test_what_is_composed_for_a_block_is_gone_after_it(checkpoint: Path, other: Path) -> None:
    with composed(ComposeRequest(checkpoint=checkpoint, vae=other)) as (folder, variant):
        assert open_checkpoint(folder, variant=variant).composition is not None
    assert not folder.exists()


def test_a_preview_decoder_from_elsewhere_wins(preview_checkpoint: Path, tmp_path: Path) -> None:
    made = compose_checkpoint(ComposeRequest(checkpoint=preview_checkpoint), tmp_path / "made")
    own = preview_checkpoint / "preview_decoder"
    assert made.component_files("preview_decoder")[0].parent == own
    elsewhere = shutil.copytree(own, tmp_path / "taesd")
    opened = open_checkpoint(made.folder, preview_decoder=elsewhere)
    assert opened.component_files("preview_decoder")[0].parent == elsewhere
    assert_same(weights_of(opened, "preview_decoder"), weights_of(made, "preview_decoder"))


# A single file


@pytest.fixture(scope="module")
def published_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with SDXL's ratios: heads of 64 channels, norms of 32 groups."""
    from triptych.testing import tiny

    with pytest.MonkeyPatch.context() as patch:
        text = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
        patch.setattr(tiny, "TEXT_ENCODER", {**tiny.TEXT_ENCODER, **text, "projection_dim": 64})
        patch.setattr(tiny, "TEXT_ENCODER_2", {**tiny.TEXT_ENCODER_2, **text})
        channels = {"block_out_channels": (64, 64, 64), "attention_head_dim": (1, 1, 1)}
        numbers = {
            "cross_attention_dim": 128,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 64 + 6 * 256,
            "norm_num_groups": 32,
        }
        patch.setattr(tiny, "UNET", {**tiny.UNET, **channels, **numbers})
        vae = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32}
        patch.setattr(tiny, "VAE", {**tiny.VAE, **vae})
        return tiny_checkpoint(tmp_path_factory.mktemp("published") / "tiny")


@pytest.fixture
def hub_cache(
    published_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], None]:
    """Puts a tokenizer of the small checkpoint into a hub's cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repo_id: str, folder: str) -> None:
        model = tmp_path / "hub" / f"models--{repo_id.replace('/', '--')}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("main")
        shutil.copytree(published_tiny / "tokenizer", model / "snapshots" / "main" / folder)

    return put


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repo_id", "inside"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
        ("openai/clip-vit-large-patch14", "."),
    ],
)
def test_a_single_file_needs_nothing_but_clip_s_vocabulary(
    repo_id: str,
    inside: str,
    published_tiny: Path,
    hub_cache: Callable[[str, str], None],
    tmp_path: Path,
) -> None:
    hub_cache(repo_id, inside)
    file = write_single_file(published_tiny, tmp_path / "tuned.safetensors", extra=("v_pred",))
    made = compose_checkpoint(ComposeRequest(checkpoint=file), tmp_path / "made")
    expected = open_checkpoint(published_tiny)
    assert replace(made.config, sample_size=16) == expected.config
    for component in expected.config.components:
        assert_same(weights_of(made, component), weights_of(expected, component))
    for name in ("tokenizer", "tokenizer_2"):
        texts = ["A photo! of <|endoftext|> a cat", ""]
        found, wanted = (
            load_tokenizer(folder / name).encode(texts).input_ids.tolist()
            for folder in (made.folder, published_tiny)
        )
        assert found == wanted
    summary = inspect_path(made.folder)
    assert not summary.problems
    assert summary.scheduler["prediction_type"] == "v_prediction"
    assert [source.text() for source in summary.sources] == ["checkpoint tuned.safetensors"]


def test_a_single_file_without_tokenizers_says_where_to_get_them(
    published_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    file = write_single_file(published_tiny, tmp_path / "model.safetensors")
    message = refusal(ComposeRequest(checkpoint=file), tmp_path / "made")
    assert "--config FOLDER" in message
    assert "openai/clip-vit-large-patch14" in message
    assert str(tmp_path / "empty") in message


def test_a_tokenizer_of_another_vocabulary_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = write_single_file(checkpoint, tmp_path / "model.safetensors")
    config = shutil.copytree(checkpoint, tmp_path / "config")
    path = config / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    path.write_text(json.dumps({**vocabulary, "one more": len(vocabulary)}))
    message = refusal(ComposeRequest(checkpoint=file, config=config), tmp_path / "made")
    count = len(vocabulary)
    assert f"embeddings of {count} tokens and a tokenizer of {count + 1}" in message


def test_configs_that_do_not_fit_a_single_file_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = write_single_file(checkpoint, tmp_path / "model.safetensors")
    config = tiny_checkpoint(tmp_path / "config", kind="inpaint")
    message = refusal(ComposeRequest(checkpoint=file, config=config), tmp_path / "made")
    assert "unet weight 'unet.conv_in.weight': got [8, 4, 3, 3], want [8, 9, 3, 3]" in message


def test_options_that_a_checkpoint_has_no_use_for_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    file = write_single_file(checkpoint, tmp_path / "model.safetensors")
    single = ComposeRequest(checkpoint=file, config=checkpoint, variant="fp16")
    folder = ComposeRequest(checkpoint=checkpoint, config=checkpoint)
    for request in (single, folder):
        with pytest.raises(UsageError, match="want none"):
            compose_checkpoint(request, tmp_path / "made")


def test_a_single_file_is_composed_for_a_block(checkpoint: Path, tmp_path: Path) -> None:
    file = write_single_file(checkpoint, tmp_path / "model.safetensors")
    with composed(ComposeRequest(checkpoint=file, config=checkpoint)) as (folder, _):
        assert open_checkpoint(folder).component_files("unet") == (file,)
