"""Faults planted in ONNX graphs are named: weights, operators, constants, NaN."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from triptych.exporters.base import ExportSettings
from triptych.parity.locate import Finding, LocateReport
from triptych.runtimes.base import RuntimeSettings
from triptych.types import Array, ComponentName, FormatName
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.locate import LocateRequest, locate

pytestmark = pytest.mark.slow

Change: TypeAlias = Callable[[Path], None]
Changed: TypeAlias = Callable[[Path, Change], Path]
Edit: TypeAlias = Callable[[onnx.GraphProto], None]

ALL_AT_ONCE = 1000
TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "up_blocks.0.attentions.1.transformer_blocks.1.norm2"


def run(
    bundle: Path,
    checkpoint: Path,
    component: ComponentName = "unet",
    *,
    taps_per_run: int = ALL_AT_ONCE,
    runtime: str | None = None,
    timestep: float | None = None,
) -> LocateReport:
    request = LocateRequest(
        bundle=bundle,
        reference=checkpoint,
        component=component,
        runtime=runtime,
        runtime_settings=RuntimeSettings(num_threads=1),
        timestep=timestep,
        taps_per_run=taps_per_run,
    )
    return locate(request, report=lambda _: None)


def in_graph(component: ComponentName, edit: Edit) -> Change:
    """A change of a bundle from a change of one graph."""

    def change(bundle: Path) -> None:
        path = bundle / component / "model.onnx"
        model = onnx.load(path)
        edit(model.graph)
        onnx.save(model, path)

    return change


def in_weight(name: str, edit: Callable[[Array], None]) -> Edit:
    def change(graph: onnx.GraphProto) -> None:
        (weight,) = [each for each in graph.initializer if each.name == name]
        values = numpy_helper.to_array(weight).copy()
        edit(values)
        weight.CopyFrom(numpy_helper.from_array(values, name))

    return change


def bump(values: Array) -> None:
    values.flat[7] += 4


def spoil(values: Array) -> None:
    values.flat[0] = np.nan


def negate(values: Array) -> None:
    values *= -1


def only(report: LocateReport) -> Finding:
    assert report.verdict == "failed"
    (finding,) = report.findings
    assert not report.problems
    return finding


@pytest.mark.parametrize(
    ("module", "parameter", "operator", "block"),
    [
        (
            TO_Q,
            "weight",
            "/unet/down_blocks.1/attentions.0/transformer_blocks.0/attn1/to_q/MatMul",
            "down_blocks.1.attentions.0.transformer_blocks.0",
        ),
        (
            "mid_block.resnets.1.conv2",
            "weight",
            "/unet/mid_block/resnets.1/conv2/Conv",
            "mid_block.resnets.1",
        ),
        (
            "up_blocks.1.resnets.2.norm1",
            "bias",
            "/unet/up_blocks.1/resnets.2/norm1/Add",
            "up_blocks.1.resnets.2",
        ),
        (
            NORM,
            "weight",
            "/unet/up_blocks.0/attentions.1/transformer_blocks.1/norm2/LayerNormalization",
            "up_blocks.0.attentions.1.transformer_blocks.1",
        ),
    ],
)
def test_a_perturbed_weight_is_named(
    module: str,
    parameter: str,
    operator: str,
    block: str,
    onnx_folder: Path,
    checkpoint: Path,
    changed: Changed,
) -> None:
    weight = f"unet.{module}.{parameter}"
    bundle = changed(onnx_folder, in_graph("unet", in_weight(weight, bump)))
    finding = only(run(bundle, checkpoint))
    assert (finding.site.module, finding.site.before, finding.site.block) == (module, "", block)
    assert finding.operator == operator
    (difference,) = finding.weights
    assert (difference.parameter, difference.operator) == (weight, operator)
    assert difference.comparison.max_abs == pytest.approx(4, rel=1e-5)
    assert weight in finding.reason
    assert finding.arrived is not None
    assert finding.arrived.rel_l2 < 2e-6
    assert finding.local.rel_l2 == pytest.approx(finding.output.rel_l2, rel=1e-4)
    assert finding.output.rel_l2 > 0.1
    assert finding.propagated < 1e-5


def test_a_second_source_behind_the_first_is_ranked_after_it(
    onnx_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    def two(graph: onnx.GraphProto) -> None:
        in_weight(f"unet.{TO_Q}.weight", bump)(graph)
        in_weight("unet.up_blocks.2.resnets.0.conv1.weight", negate)(graph)

    report = run(changed(onnx_folder, in_graph("unet", two)), checkpoint)
    assert [found.site.module for found in report.findings] == [TO_Q, "up_blocks.2.resnets.0.conv1"]
    second = report.findings[1]
    assert second.local.rel_l2 == pytest.approx(2, rel=0.1)
    assert 0.01 < second.propagated < 1
    assert second.weights[0].comparison.rel_l2 == pytest.approx(2)


def test_nan_in_a_weight_is_named_as_its_source(
    onnx_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    edit = in_weight("unet.down_blocks.2.resnets.0.conv1.weight", spoil)
    report = run(changed(onnx_folder, in_graph("unet", edit)), checkpoint)
    finding = only(report)
    assert finding.site.module == "down_blocks.2.resnets.0.conv1"
    assert not finding.local.finite_actual
    assert finding.reason == (
        "unet.down_blocks.2.resnets.0.conv1.weight holds NaN or infinity at [0, 0, 0, 0]"
    )
    assert np.isnan(report.output_error)


def scale_attention(graph: onnx.GraphProto) -> None:
    """Multiply what goes into a softmax, by an operator that no module has."""
    scope = "/unet/mid_block/attentions.0/transformer_blocks.0/attn1"
    position, softmax = next(
        (position, node)
        for position, node in enumerate(graph.node)
        if node.op_type == "Softmax" and node.name.startswith(scope)
    )
    graph.initializer.append(numpy_helper.from_array(np.float32(1.5), "scale"))
    planted = helper.make_node("Mul", [softmax.input[0], "scale"], ["scaled"])
    softmax.input[0] = "scaled"
    graph.node.insert(position, planted)


def tanh_for_erf(graph: onnx.GraphProto) -> None:
    scope = "/unet/down_blocks.2/attentions.1/transformer_blocks.0/ff"
    (node,) = [each for each in graph.node if each.op_type == "Erf" and scope in each.name]
    node.op_type = "Tanh"


def halve_frequencies(graph: onnx.GraphProto) -> None:
    """Round the table of frequencies to half precision, as converters do."""
    (constant,) = [
        node
        for node in graph.node
        if node.op_type == "Constant"
        and "/time_proj/" in node.name
        and "/add_time_proj/" not in node.name
        and numpy_helper.to_array(node.attribute[0].t).dtype == np.float32
        and numpy_helper.to_array(node.attribute[0].t).size > 1
    ]
    tensor = constant.attribute[0].t
    rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(rounded))


@pytest.mark.parametrize(
    ("edit", "module", "before", "kind"),
    [
        (
            scale_attention,
            "mid_block.attentions.0.transformer_blocks.0.attn1",
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "Softmax",
        ),
        (tanh_for_erf, "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.0", "", "Tanh"),
        (halve_frequencies, "time_proj", "", "Sin"),
    ],
)
def test_a_fault_that_is_no_weight_is_located_in_its_module(
    edit: Edit,
    module: str,
    before: str,
    kind: str,
    onnx_folder: Path,
    checkpoint: Path,
    changed: Changed,
) -> None:
    finding = only(run(changed(onnx_folder, in_graph("unet", edit)), checkpoint))
    assert (finding.site.module, finding.site.before) == (module, before)
    assert kind in {operator.type for operator in finding.site.region.operators}
    assert not finding.weights
    assert finding.reason.startswith("one of its operators differs: ")


def test_the_timestep_can_be_chosen(onnx_folder: Path, checkpoint: Path, changed: Changed) -> None:
    """At 999 the rounded frequencies make an error of 1.2e-2."""
    bundle = changed(onnx_folder, in_graph("unet", halve_frequencies))
    report = run(bundle, checkpoint, timestep=1.0)
    assert report.case.startswith("t=1 ")
    assert report.findings[0].site.module == "time_proj"
    assert report.findings[0].local.rel_l2 < 1e-4


@pytest.mark.parametrize(
    ("component", "weight", "module"),
    [
        (
            "text_encoder",
            "encoder.text_model.encoder.layers.1.mlp.fc1.weight",
            "text_model.encoder.layers.1.mlp.fc1",
        ),
        ("text_encoder_2", "encoder.text_projection.weight", "text_projection"),
        (
            "vae_decoder",
            "decoder.mid_block.attentions.0.to_v.weight",
            "decoder.mid_block.attentions.0.to_v",
        ),
        ("vae_encoder", "encoder.down_blocks.1.resnets.0.conv1.weight", None),
    ],
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_components_and_openvino_on_the_same_graph(
    component: ComponentName,
    weight: str,
    module: str | None,
    runtime: str,
    onnx_folder: Path,
    checkpoint: Path,
    changed: Changed,
) -> None:
    bundle = changed(onnx_folder, in_graph(component, in_weight(weight, bump)))
    finding = only(run(bundle, checkpoint, component, runtime=runtime))
    assert finding.site.module == (module or weight.removesuffix(".weight"))
    assert finding.weights[0].parameter == weight


def test_batches_change_nothing(onnx_folder: Path, checkpoint: Path, changed: Changed) -> None:
    edit = in_weight("encoder.text_model.encoder.layers.1.self_attn.k_proj.bias", bump)
    bundle = changed(onnx_folder, in_graph("text_encoder", edit))
    reports = [run(bundle, checkpoint, "text_encoder", taps_per_run=size) for size in (1, 7, 1000)]
    assert {report.num_sites for report in reports} == {40}
    for finding in map(only, reports):
        assert finding.site.module == "text_model.encoder.layers.1.self_attn.k_proj"
        assert finding.local.rel_l2 == pytest.approx(0.711, rel=1e-3)


@pytest.fixture(scope="module")
def half_folders(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[FormatName, Path]:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path_factory.mktemp("half"),
        formats=["onnx", "openvino", "coreml"],
        settings=ExportSettings(precision="fp16"),
    )
    return export_bundles(request)


@pytest.mark.parametrize("component", ["unet", "text_encoder_2", "vae_decoder"])
@pytest.mark.parametrize("name", ["onnx", "openvino", "coreml"])
def test_nothing_is_found_in_half_precision(
    component: ComponentName,
    name: FormatName,
    half_folders: dict[FormatName, Path],
    checkpoint: Path,
) -> None:
    report = run(half_folders[name], checkpoint, component)
    assert report.verdict == "passed", (report.findings, report.problems)
    assert report.precision == ("fp32" if component == "vae_decoder" else "fp16")
    assert report.num_sites > 30


@pytest.mark.parametrize("component", ["unet", "text_encoder_2", "vae_decoder", "vae_encoder"])
@pytest.mark.parametrize("name", ["onnx", "openvino", "coreml"])
def test_nothing_is_found_in_single_precision(
    component: ComponentName,
    name: FormatName,
    checkpoint: Path,
    request: pytest.FixtureRequest,
) -> None:
    report = run(request.getfixturevalue(f"{name}_folder"), checkpoint, component)
    assert report.verdict == "passed", (report.findings, report.problems)
    assert report.output_error < 1e-5
    assert report.tapping < 1e-6
    assert report.num_sites > 30


def test_a_fault_in_a_half_precision_graph_is_named(
    half_folders: dict[FormatName, Path], checkpoint: Path, changed: Changed
) -> None:
    edit = in_weight("unet.mid_block.attentions.0.transformer_blocks.1.ff.net.2.weight", bump)
    finding = only(run(changed(half_folders["onnx"], in_graph("unet", edit)), checkpoint))
    assert finding.site.module == "mid_block.attentions.0.transformer_blocks.1.ff.net.2"
    assert finding.weights[0].comparison.max_abs == pytest.approx(4, rel=1e-2)
