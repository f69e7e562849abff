"""Faults planted in Core ML programs are named, whatever the layout and the cut."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from triptych.exporters.base import CoreMlSettings, ExportSettings
from triptych.mil.reading import read_program
from triptych.mil.weights import Weight
from triptych.parity.locate import Finding
from triptych.runtimes.base import RuntimeSettings
from triptych.types import Array, ComponentName
from triptych.workflows.export import ExportRequest, export_bundles
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
    )
    report = locate(request, report=lambda _: None)
    assert report.verdict == "failed"
    assert report.execution.runtime == "coreml-reference"
    (finding,) = report.findings
    return finding


def in_weight(package: str, name: str, edit: Callable[[Array], None]) -> Change:
    """Edit the weight of this name where it lies in weight.bin."""

    def change(bundle: Path) -> None:
        (folder,) = bundle.glob(f"*_{package}.mlpackage")
        constant = read_program(folder).constants[name]
        assert isinstance(constant, Weight)
        path = next(folder.rglob("weight.bin"))
        content = bytearray(path.read_bytes())
        raw = constant.raw.tobytes()
        start = content.index(raw)
        assert content.count(raw) == 1
        values = constant.load().copy()
        edit(values)
        content[start : start + len(raw)] = values.tobytes()
        path.write_bytes(content)

    return change


def bump(values: Array) -> None:
    values.flat[7] += 4


def spoil(values: Array) -> None:
    values.flat[0] = np.nan


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "linear"),
        ("mid_block.resnets.1.conv2", "conv"),
        ("up_blocks.0.attentions.1.transformer_blocks.1.norm2", "layer_norm"),
    ],
)
def test_a_perturbed_weight_is_named(
    module: str, kind: str, coreml_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    name = f"unet_unet_{module.replace('.', '_')}_weight"
    finding = find(changed(coreml_folder, in_weight("unet", name, bump)), checkpoint)
    assert (finding.site.module, finding.site.before) == (module, "")
    assert finding.operator_type == kind
    assert [each.parameter for each in finding.weights] == [f"unet.{module}.weight"]
    assert finding.local.rel_l2 == pytest.approx(finding.output.rel_l2, rel=1e-4)


@pytest.mark.parametrize(
    ("position", "module"),
    [(5, "down_blocks.1.resnets.0.norm2"), (6, "down_blocks.1.attentions.0.norm")],
)
def test_a_group_norm_is_named_though_its_weights_have_no_name(
    position: int, module: str, coreml_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    (folder,) = coreml_folder.glob("*_unet.mlpackage")
    norms = [step for step in read_program(folder).operations if step.type == "batch_norm"]
    (gamma,) = norms[position].inputs["gamma"]
    finding = find(changed(coreml_folder, in_weight("unet", gamma, bump)), checkpoint)
    assert finding.operator == norms[position].name
    assert finding.site.module == module
    assert [each.parameter for each in finding.weights] == [f"unet.{module}.weight"]


def test_nan_is_named_where_it_is_made(
    coreml_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    """The engine itself stops there, and gives no outputs to compare."""
    name = "vae_decoder_mid_block_resnets_0_conv1_weight"
    finding = find(
        changed(coreml_folder, in_weight("vae_decoder", name, spoil)), checkpoint, "vae_decoder"
    )
    assert finding.site.module == "decoder.mid_block.resnets.0.conv1"
    assert not finding.local.finite_actual
    assert "holds NaN" in finding.reason


@pytest.fixture(scope="module")
def cut_folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net of half precision for the Neural Engine, cut in two."""
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("cut"),
        formats=["coreml"],
        components=["unet"],
        settings=ExportSettings(
            precision="fp16", coreml=CoreMlSettings(attention="split-einsum", num_chunks=2)
        ),
    )
    return export_bundles(request)["coreml"]


def test_nothing_is_found_in_another_layout_cut_in_two(cut_folder: Path, checkpoint: Path) -> None:
    report = locate(LocateRequest(bundle=cut_folder, reference=checkpoint), report=lambda _: None)
    assert report.verdict == "passed", (report.findings, report.problems)
    assert report.num_sites > 450
    assert report.tapping == 0


@pytest.mark.parametrize(
    ("chunk", "module"),
    [
        (1, "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"),
        (2, "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"),
    ],
)
def test_a_perturbed_weight_is_named_in_another_layout_cut_in_two(
    chunk: int, module: str, cut_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    name = f"unet_unet_{module.replace('.', '_')}_weight_to_fp16"
    finding = find(changed(cut_folder, in_weight(f"unet_chunk{chunk}", name, bump)), checkpoint)
    assert finding.site.module == module
    assert [each.parameter for each in finding.weights] == [f"unet.{module}.weight"]
    assert len(finding.weights[0].comparison.shape) == 2  # as PyTorch has it, not a convolution
