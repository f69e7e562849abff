"""Weights that stay in the checkpoint: nothing is copied, and nothing computes otherwise."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.bundle.manifest import read_manifest
from triptych.bundle.store import check_files
from triptych.errors import OutputError, UsageError
from triptych.exporters.base import ExportSettings
from triptych.models.feeds import unet_feed
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import CheckedSession
from triptych.testing import full_size_checkpoint, tiny
from triptych.testing.full_size import NetworkSizes
from triptych.types import Array, FormatName, Precision
from triptych.workflows.export import ExportRequest, estimate_request, export_bundles

WEIGHTS = "diffusion_pytorch_model.safetensors"


def request_of(
    checkpoint: Path, output: Path, *, precision: Precision = "fp32", to: FormatName = "onnx"
) -> ExportRequest:
    return ExportRequest(
        checkpoint=checkpoint,
        output=output,
        formats=[to],
        components=["unet"],
        settings=ExportSettings(precision=precision, weights_in_place=True),
    )


@pytest.fixture(scope="module")
def own_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the filesystem that the bundle goes to."""
    return shutil.copytree(checkpoint, tmp_path_factory.mktemp("in_place") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(own_checkpoint: Path) -> Bundle:
    output = own_checkpoint.with_name("out")
    return open_bundle(export_bundles(request_of(own_checkpoint, output))["onnx"])


def noise_pred(bundle: Bundle, runtime: str) -> Array:
    artifact = bundle.artifact("unet")
    feed = unet_feed(bundle.config, batch=2, height=9, width=13, random=np.random.default_rng(0))
    with CheckedSession(make_runtime(runtime).open(artifact), artifact) as session:
        return session.run(feed)["noise_pred"]


def test_the_bundle_links_the_checkpoints_file(bundle: Bundle, own_checkpoint: Path) -> None:
    linked, original = bundle.folder / "unet" / WEIGHTS, own_checkpoint / "unet" / WEIGHTS
    assert linked.samefile(original)
    assert not linked.is_symlink()
    model = onnx.load(str(bundle.folder / "unet" / "model.onnx"), load_external_data=False)
    external = [weight for weight in model.graph.initializer if weight.external_data]
    elements = sum(int(np.prod(weight.dims)) for weight in external)
    assert elements > 0.9 * original.stat().st_size / 4
    assert {
        entry.value
        for weight in external
        for entry in weight.external_data
        if entry.key == "location"
    } == {WEIGHTS}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_engines_compute_what_a_copied_bundle_gives(
    runtime: str, bundle: Bundle, onnx_bundle: Bundle
) -> None:
    assert rel_l2(noise_pred(bundle, runtime), noise_pred(onnx_bundle, "onnxruntime")) <= 5e-6


def test_a_copy_stands_alone(bundle: Bundle, tmp_path: Path) -> None:
    copied = shutil.copytree(bundle.folder, tmp_path / "copy")
    check_files(copied, read_manifest(copied).files)
    assert not (copied / "unet" / WEIGHTS).samefile(bundle.folder / "unet" / WEIGHTS)
    onnx.checker.check_model(str(copied / "unet" / "model.onnx"))


def test_the_estimate_counts_no_weights(own_checkpoint: Path, tmp_path: Path) -> None:
    graph_bytes = 200_000
    assert estimate_request(request_of(own_checkpoint, tmp_path)).disk_bytes == graph_bytes


@pytest.mark.parametrize(
    ("precision", "to", "message"),
    [
        ("fp16", "onnx", "got a checkpoint of F32, want F16"),
        ("int8", "onnx", "compressed weights are others"),
        ("fp32", "openvino", "want onnx alone"),
    ],
)
def test_weights_that_cannot_stay(
    precision: Precision, to: FormatName, message: str, own_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export_bundles(request_of(own_checkpoint, tmp_path, precision=precision, to=to))
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_a_vae_that_stays_float32_is_copied(tmp_path: Path) -> None:
    sizes = NetworkSizes(
        text_encoder={**tiny.TEXT_ENCODER, "vocab_size": 1000},
        text_encoder_2={**tiny.TEXT_ENCODER_2, "vocab_size": 1000},
        unet=tiny.UNET,
        vae=tiny.VAE,
    )
    half = full_size_checkpoint(tmp_path / "half", sizes=sizes)
    request = replace(
        request_of(half, tmp_path / "out", precision="fp16"),
        components=("text_encoder", "vae_decoder"),
    )
    folder = export_bundles(request)["onnx"]
    linked = folder / "text_encoder" / "model.safetensors"
    assert linked.samefile(half / "text_encoder" / "model.safetensors")
    assert sorted(file.name for file in (folder / "vae_decoder").iterdir()) == [
        "config.json",
        "model.onnx",
    ]


def test_another_filesystem_is_named_as_the_reason(
    own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triptych.exporters.onnx import make_exporter
    from triptych.models.checkpoint import open_checkpoint

    def refuse(_source: Path, _link: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    exporter = make_exporter(ExportSettings(weights_in_place=True))
    with pytest.raises(OutputError, match="only on the filesystem that the checkpoint is on"):
        exporter.export(
            open_checkpoint(own_checkpoint), "vae_decoder", tmp_path, report=lambda *_: None
        )
