"""Faults planted in OpenVINO's own graphs are named."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree as ET

import numpy as np
import openvino
import pytest
from openvino import opset13

from triptych.parity.locate import Finding
from triptych.runtimes.base import RuntimeSettings
from triptych.types import Array, ComponentName
from triptych.workflows.locate import LocateRequest, locate

pytestmark = pytest.mark.slow

Change: TypeAlias = Callable[[Path], None]
Changed: TypeAlias = Callable[[Path, Change], Path]


def find(bundle: Path, checkpoint: Path, component: ComponentName = "unet") -> Finding:
    request = LocateRequest(
        bundle=bundle,
        reference=checkpoint,
        component=component,
        runtime_settings=RuntimeSettings(num_threads=1),
        taps_per_run=1000,
    )
    report = locate(request, report=lambda _: None)
    assert report.verdict == "failed"
    (finding,) = report.findings
    return finding


def in_weight(component: ComponentName, name: str, edit: Callable[[Array], None]) -> Change:
    """Edit a weight where it lies in openvino_model.bin."""

    def change(bundle: Path) -> None:
        path = bundle / component / "openvino_model.xml"
        layers = ET.parse(path).iter("layer")  # noqa: S314  it was exported just now
        (layer,) = [each for each in layers if each.get("name") == name]
        place = layer.find("data")
        assert place is not None
        start, size = (int(place.get(key, "")) for key in ("offset", "size"))
        weights = path.with_suffix(".bin")
        content = bytearray(weights.read_bytes())
        values = np.frombuffer(bytes(content[start : start + size]), np.float32).copy()
        edit(values)
        content[start : start + size] = values.tobytes()
        weights.write_bytes(content)

    return change


def bump(values: Array) -> None:
    values[7] += 4


def spoil(values: Array) -> None:
    values[0] = np.nan


@pytest.mark.parametrize(
    ("module", "parameter", "kind"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "weight", "MatMul"),
        ("mid_block.resnets.1.conv2", "weight", "Convolution"),
        ("up_blocks.1.resnets.2.norm1", "bias", "Add"),
        ("up_blocks.0.attentions.1.transformer_blocks.1.norm2", "weight", "Multiply"),
    ],
)
def test_a_perturbed_weight_is_named(
    module: str,
    parameter: str,
    kind: str,
    openvino_folder: Path,
    checkpoint: Path,
    changed: Changed,
) -> None:
    weight = f"unet.{module}.{parameter}"
    finding = find(changed(openvino_folder, in_weight("unet", weight, bump)), checkpoint)
    assert (finding.site.module, finding.site.before) == (module, "")
    assert finding.operator_type == kind
    assert [each.parameter for each in finding.weights] == [weight]
    assert finding.weights[0].comparison.max_abs == pytest.approx(4, rel=1e-5)
    assert finding.local.rel_l2 == pytest.approx(finding.output.rel_l2, rel=1e-4)


def test_nan_in_the_last_convolution_is_named(
    openvino_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    """Its bias is added by an operator that has the output's name alone."""
    change = in_weight("vae_decoder", "decoder.conv_out.weight", spoil)
    finding = find(changed(openvino_folder, change), checkpoint, "vae_decoder")
    assert finding.site.module == "decoder.conv_out"
    assert not finding.local.finite_actual
    assert finding.reason.startswith("decoder.conv_out.weight holds NaN")


def test_a_planted_operator_is_located_in_its_attention(
    openvino_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    def scale(bundle: Path) -> None:
        """Multiply the values of one attention by 1.01, without a name."""
        path = bundle / "text_encoder" / "openvino_model.xml"
        model = openvino.Core().read_model(path)
        scope = "/encoder/text_model/encoder/layers.2/self_attn/v_proj/"
        (port,) = [
            node.output(0)
            for node in model.get_ordered_ops()
            if node.get_friendly_name() == f"{scope}Add"
        ]
        readers = port.get_target_inputs()
        scaled = opset13.multiply(port, opset13.constant(np.float32(1.01)))
        for reader in readers:
            reader.replace_source_output(scaled.output(0))
        openvino.save_model(model, path.with_name("new.xml"), compress_to_fp16=False)
        for suffix in (".xml", ".bin"):
            path.with_name(f"new{suffix}").replace(path.with_suffix(suffix))

    finding = find(changed(openvino_folder, scale), checkpoint, "text_encoder")
    assert finding.site.module == "text_model.encoder.layers.2.self_attn"
    assert finding.site.before == "text_model.encoder.layers.2.self_attn.out_proj"
    assert finding.site.block == "text_model.encoder.layers.2"
    assert "Multiply" in {operator.type for operator in finding.site.region.operators}
    assert finding.local.rel_l2 == pytest.approx(1e-2, rel=0.01)
    assert not finding.weights


def test_bfloat16_is_measured_outside_of_the_graph(openvino_folder: Path, checkpoint: Path) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    request = LocateRequest(
        bundle=openvino_folder,
        reference=checkpoint,
        component="text_encoder",
        runtime_settings=RuntimeSettings(num_threads=1, precision="bf16"),
    )
    report = locate(request, report=lambda _: None)
    assert report.verdict == "passed"
    assert (report.precision, report.execution.precision) == ("bf16", "bf16")
    assert 1e-3 < report.output_error < 2e-2
