"""OpenVINO graphs in bfloat16: what computes in it, and what does not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from openvino import Type

from triptych.bundle.bundle import Bundle
from triptych.exporters import make_exporter
from triptych.exporters._openvino_bfloat16 import sinusoids
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import open_checkpoint
from triptych.models.modules import skeleton_module
from triptych.models.weights import stream_tensors
from triptych.types import Array, ComponentName

Read = Callable[[ComponentName], "openvino.Model"]


@pytest.fixture(scope="module")
def read(openvino_bf16_folder: Path) -> Read:
    """Reads a component's graph."""
    return lambda component: openvino.Core().read_model(
        openvino_bf16_folder / component / "openvino_model.xml"
    )


def bits(constant: "openvino.op.Constant") -> Array:
    found: Array = constant.data.view(np.uint16)
    return found


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "unet"])
def test_everything_but_ports_and_sinusoids_is_bfloat16(
    component: ComponentName, read: Read
) -> None:
    model = read(component)
    exact = {node.get_friendly_name() for node in sinusoids(model)}
    floats = {
        node.get_friendly_name(): (node.get_type_name(), node.get_output_element_type(0))
        for node in model.get_ops()
        if node.get_output_size() and node.get_output_element_type(0).is_real()
    }
    wide = {name: kind for name, (kind, dtype) in floats.items() if dtype != Type.bf16}
    inside = {kind for name, kind in wide.items() if name not in exact}
    assert inside <= {"Parameter", "Convert", "Result"}
    assert bool(exact) == (component == "unet")
    assert {floats[name][1] for name in exact} <= {Type.f32}
    assert sum(kind == "MatMul" for kind, _ in floats.values()) > 10
    assert {port.get_element_type() for port in model.outputs} == {Type.f32}


def test_attention_stays_fused(read: Read) -> None:
    kinds = [node.get_type_name() for node in read("unet").get_ops()]
    assert kinds.count("ScaledDotProductAttention") == 34
    assert "Softmax" not in kinds


def test_weights_are_torchs_rounding_of_the_checkpoints(read: Read, checkpoint: Path) -> None:
    model = read("text_encoder_2")
    found = {
        node.get_friendly_name(): node
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
    }
    _, stored = skeleton_module(open_checkpoint(checkpoint), "text_encoder_2", dtype=torch.float32)
    names = [name for name in stored if name in found]
    assert len(names) > 50
    for name, tensor in stream_tensors(stored, names):
        rounded = tensor.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(bits(found[name]), rounded.reshape(found[name].data.shape))


def test_masks_stay_finite(read: Read) -> None:
    """The least float32 has no bfloat16; rounded it would be minus infinity."""
    constants = [
        node
        for node in read("text_encoder").get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == Type.bf16
    ]
    widened = [bits(node).astype(np.uint32) << 16 for node in constants]
    values = [words.view(np.float32) for words in widened]
    assert all(np.isfinite(value).all() for value in values)
    assert min(value.min() for value in values if value.size) < -3e38


def test_two_exports_are_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    exporter = make_exporter("openvino", ExportSettings(precision="bf16"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        exporter.export(
            open_checkpoint(checkpoint), "text_encoder", tmp_path / name, report=lambda *_: None
        )
    one, two = sorted((tmp_path / "one").rglob("*.*")), sorted((tmp_path / "two").rglob("*.*"))
    assert [path.name for path in one] == ["openvino_model.bin", "openvino_model.xml"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_the_vae_stays_float32(checkpoint_bundle: Bundle, read: Read) -> None:
    assert checkpoint_bundle.config.force_upcast
    assert Type.bf16 not in {
        node.get_output_element_type(0)
        for node in read("vae_decoder").get_ops()
        if node.get_output_size()
    }
