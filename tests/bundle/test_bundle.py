import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.layouts import MANIFEST_NAME
from triptych.errors import BundleError, CheckpointError
from triptych.models.sdxl import COMPONENTS, component_spec
from triptych.types import FormatName


@pytest.fixture
def copied(onnx_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(onnx_folder, tmp_path / "onnx")


def test_our_bundle_is_known_by_its_manifest(onnx_bundle: Bundle, onnx_folder: Path) -> None:
    assert onnx_bundle.format == "onnx"
    assert onnx_bundle.manifest is not None
    assert tuple(onnx_bundle.artifacts) == COMPONENTS
    for component, artifact in onnx_bundle.artifacts.items():
        assert artifact.path == onnx_folder / component / "model.onnx"
        assert artifact.record is not None
        assert artifact.record.name == component
        assert artifact.spec == component_spec(component, onnx_bundle.config)
        assert artifact.checkpoint is None


def test_a_checkpoint_is_a_bundle_of_its_own(checkpoint_bundle: Bundle, checkpoint: Path) -> None:
    assert checkpoint_bundle.format == "diffusers"
    assert checkpoint_bundle.manifest is None
    assert tuple(checkpoint_bundle.artifacts) == COMPONENTS
    assert checkpoint_bundle.artifact("vae_decoder").path == checkpoint / "vae"
    assert checkpoint_bundle.artifact("unet").checkpoint is not None


def test_a_bundle_has_the_config_of_its_checkpoint(
    onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    assert onnx_bundle.config == checkpoint_bundle.config


def test_a_folder_without_a_manifest_is_read_as_optimums(copied: Path, onnx_bundle: Bundle) -> None:
    (copied / MANIFEST_NAME).unlink()
    bundle = open_bundle(copied)
    assert bundle.format == "onnx"
    assert bundle.manifest is None
    assert tuple(bundle.artifacts) == COMPONENTS
    for component, artifact in bundle.artifacts.items():
        assert artifact.record is None
        assert artifact.bindings == onnx_bundle.artifact(component).bindings
    bundle.check_files()  # nothing was promised


def test_a_foreign_folder_has_the_components_that_lie_in_it(copied: Path) -> None:
    (copied / MANIFEST_NAME).unlink()
    (copied / "vae_encoder" / "model.onnx").unlink()
    bundle = open_bundle(copied)
    assert "vae_encoder" not in bundle.artifacts
    with pytest.raises(
        BundleError, match=r"want vae_encoder.*all of them: .* --to onnx --overwrite$"
    ):
        bundle.artifact("vae_encoder")


def test_a_missing_preview_decoder_is_told_how_to_get(
    onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    with pytest.raises(BundleError, match=r"want preview_decoder.*--preview-decoder FOLDER"):
        onnx_bundle.artifact("preview_decoder")
    with pytest.raises(BundleError, match=r"Put an AutoencoderTiny.* in its preview_decoder/"):
        checkpoint_bundle.artifact("preview_decoder")


def test_a_checkpoint_is_opened_with_a_preview_decoder_from_elsewhere(
    checkpoint: Path, preview_checkpoint: Path
) -> None:
    elsewhere = preview_checkpoint / "preview_decoder"
    bundle = open_bundle(checkpoint, preview_decoder=elsewhere)
    assert tuple(bundle.artifacts) == (*COMPONENTS, "preview_decoder")
    assert bundle.artifact("preview_decoder").path == elsewhere
    assert tuple(open_bundle(preview_checkpoint).artifacts) == tuple(bundle.artifacts)


def test_a_preview_decoder_in_a_folder_without_a_manifest_is_found(
    copied: Path, preview_bundles: Mapping[FormatName, Bundle]
) -> None:
    (copied / MANIFEST_NAME).unlink()
    source = preview_bundles["onnx"].folder / "preview_decoder"
    shutil.copytree(source, copied / "preview_decoder")
    bundle = open_bundle(copied)
    assert tuple(bundle.artifacts) == (*COMPONENTS, "preview_decoder")


@pytest.mark.parametrize("name", ["unet/model.onnx", "tokenizer/vocab.json"])
def test_a_bundle_without_one_of_its_files_is_refused(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        open_bundle(copied)
    assert open_bundle(copied, check_sizes=False).manifest is not None


def test_a_truncated_bundle_is_refused(copied: Path) -> None:
    path = copied / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"unet/model\.onnx: truncated"):
        open_bundle(copied)


def test_a_flipped_bit_shows_when_hashes_are_compared(copied: Path) -> None:
    path = copied / "unet" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    bundle = open_bundle(copied)
    bundle.check_files(hashes=False)
    with pytest.raises(BundleError, match="content changed"):
        bundle.check_files()


def test_a_moved_bundle_still_opens(copied: Path, tmp_path: Path) -> None:
    moved = copied.rename(tmp_path / "elsewhere")
    bundle = open_bundle(moved)
    assert bundle.artifact("unet").path == moved / "unet" / "model.onnx"
    bundle.check_files()


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_what_holds_no_model_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("{}")
    with pytest.raises(BundleError, match=r"got neither triptych\.json nor model_index\.json"):
        open_bundle(path)


def test_the_folder_above_a_bundle_points_to_it(copied: Path) -> None:
    with pytest.raises(BundleError, match="Did you mean") as caught:
        open_bundle(copied.parent)
    assert str(copied) in str(caught.value)


def test_a_broken_manifest_is_not_taken_for_a_foreign_folder(copied: Path) -> None:
    (copied / MANIFEST_NAME).write_text("{")
    with pytest.raises(BundleError, match="want a triptych manifest"):
        open_bundle(copied)


def test_configs_of_another_kind_of_model_are_refused(copied: Path) -> None:
    (copied / MANIFEST_NAME).unlink()
    path = copied / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "addition_embed_type": None}))
    with pytest.raises(CheckpointError, match="not an SDXL U-Net"):
        open_bundle(copied)


def test_a_checkpoints_variant_is_handed_on(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="variant 'fp16'"):
        open_bundle(checkpoint, variant="fp16")
