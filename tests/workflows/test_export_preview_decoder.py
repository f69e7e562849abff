"""Export of a preview decoder that lies elsewhere, and what is refused with nothing written."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from triptych.bundle.bundle import Bundle
from triptych.bundle.store import file_sha256
from triptych.errors import BrokenInputError, CheckpointError, UsageError
from triptych.types import FormatName
from triptych.workflows.export import ExportRequest, export_bundles


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "coreml"])
def test_a_preview_decoder_from_elsewhere(
    to: FormatName,
    preview_bundles: Mapping[FormatName, Bundle],
    preview_checkpoint: Path,
) -> None:
    bundle = preview_bundles[to]
    assert bundle.config.components[-1] == "preview_decoder"
    bundle.check_files()
    record = bundle.artifact("preview_decoder").record
    assert record is not None
    assert record.precision == "fp32"
    assert len({one.case for one in record.verification}) == 3
    assert all(one.rel_l2 <= one.limit == 1e-5 for one in record.verification)
    (path,) = record.source_sha256
    assert path == "preview_decoder/diffusion_pytorch_model.safetensors"
    assert record.source_sha256[path] == file_sha256(preview_checkpoint / path)
    config = "preview_decoder/config.json"
    assert (bundle.folder / config).read_bytes() == (preview_checkpoint / config).read_bytes()


def test_a_preview_decoder_that_is_another_vae(checkpoint: Path, tmp_path: Path) -> None:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path / "out",
        formats=["onnx"],
        preview_decoder=checkpoint / "vae",
    )
    with pytest.raises(CheckpointError, match="got 'AutoencoderKL', want 'AutoencoderTiny'"):
        export_bundles(request)
    assert not (tmp_path / "out").exists()


def test_a_preview_decoder_that_is_not_exported(
    checkpoint: Path, preview_checkpoint: Path, tmp_path: Path
) -> None:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path / "out",
        formats=["onnx"],
        components=["unet"],
        preview_decoder=preview_checkpoint / "preview_decoder",
    )
    with pytest.raises(UsageError, match="got unet with a preview decoder, want"):
        export_bundles(request)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "coreml"])
def test_a_preview_decoder_whose_weights_are_another_vaes(
    to: FormatName, checkpoint: Path, preview_checkpoint: Path, tmp_path: Path
) -> None:
    """Found when its weights are read, in the middle of the export."""
    broken = shutil.copytree(preview_checkpoint / "preview_decoder", tmp_path / "taesd")
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copy(checkpoint / "vae" / weights, broken / weights)
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path / "out",
        formats=[to],
        components=["preview_decoder"],
        preview_decoder=broken,
    )
    with pytest.raises(BrokenInputError, match=r"preview_decoder weights: got .* missing"):
        export_bundles(request)
    assert list((tmp_path / "out").iterdir()) == []
