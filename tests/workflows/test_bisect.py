"""Planted faults, and whom a bisection names for them."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from triptych.errors import BackendError, BundleError, IncomparableError, UsageError
from triptych.parity.bisect import Bisected, BisectReport, Section
from triptych.parity.bisect_lines import section_lines
from triptych.runtimes.base import RuntimeSettings
from triptych.testing import tiny_checkpoint
from triptych.types import Array, ComponentName
from triptych.workflows.bisect import bisect_bundle
from triptych.workflows.bisect_ground import BisectRequest
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.record import RunRequest

pytestmark = pytest.mark.slow

ONE_THREAD = RuntimeSettings(num_threads=1)
Fault = Callable[[onnx.ModelProto], None]


def bisected(
    what: Bisected,
    bundle: Path,
    checkpoint: Path,
    *,
    runtime: str | None = None,
    component: ComponentName = "unet",
    settings: RuntimeSettings = ONE_THREAD,
    num_inference_steps: int = 2,
) -> BisectReport:
    request = BisectRequest(
        what=what,
        bundle=bundle,
        reference=checkpoint,
        runtime=runtime,
        runtime_settings=settings,
        component=component,
        run=RunRequest(num_inference_steps=num_inference_steps),
        reference_settings=ONE_THREAD,
    )
    return bisect_bundle(request, report=lambda _: None)


def only_section(report: BisectReport) -> Section:
    (section,) = report.sections
    return section


def plant(source: Path, target: Path, component: ComponentName, fault: Fault) -> Path:
    """A copy with one fault, as a foreign folder: no manifest knows that it was changed."""
    folder = shutil.copytree(source, target)
    (folder / "triptych.json").unlink()
    path = folder / component / "model.onnx"
    model = onnx.load(path)
    fault(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return folder


def set_weight(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    (weight,) = [found for found in model.graph.initializer if found.name == name]
    values = change(onnx.numpy_helper.to_array(weight).copy())
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))


def changed_weight(name: str, factor: float = 1.05) -> Fault:
    return lambda model: set_weight(model, name, lambda values: values * factor)


def with_only(source: Path, target: Path, component: ComponentName) -> Path:
    """A copy of an export that has one network: no picture can be made with it."""
    folder = shutil.copytree(source, target)
    (folder / "triptych.json").unlink()
    for path in folder.glob("*.mlpackage"):
        if not path.stem.endswith(f"_{component}"):
            shutil.rmtree(path)
    for path in [*folder.glob("*/model.onnx"), *folder.glob("*/openvino_model.xml")]:
        if path.parent.name != component:
            path.unlink()
    return folder


# --- components ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "weight", "factor"),
    [
        ("unet", "unet.conv_in.weight", 1.05),
        ("text_encoder_2", "text_encoder.text_projection.weight", 3.0),
        ("vae_decoder", "vae.decoder.conv_out.weight", 1.01),
        ("unet", "unet.conv_in.weight", math.nan),
        ("text_encoder", "encoder.text_model.embeddings.position_embedding.weight", math.nan),
    ],
    ids=[
        "the U-Net",
        "the second text encoder",
        "a decoder too bright",
        "NaN in the U-Net",
        "NaN in a text encoder",
    ],
)
def test_the_component_with_a_changed_weight_is_named(
    checkpoint: Path,
    onnx_folder: Path,
    tmp_path: Path,
    component: ComponentName,
    weight: str,
    factor: float,
) -> None:
    names = {
        one.name for one in onnx.load(onnx_folder / component / "model.onnx").graph.initializer
    }
    (name,) = [one for one in names if one.endswith(weight.partition(".")[2])]
    bundle = plant(onnx_folder, tmp_path / "bundle", component, changed_weight(name, factor))

    report = bisected("components", bundle, checkpoint)

    section = only_section(report)
    assert report.verdict == "failed"
    assert len(section.trials) == 8
    first, *others = section.shares
    assert first.name == component
    assert first.share > 0.9
    assert first.without < 1e-4
    assert not any(share.carries for share in others)
    assert section.conclusion.startswith(f"the error is carried by {component} (")


def test_a_sound_bundle_needs_no_explaining(checkpoint: Path, onnx_folder: Path) -> None:
    report = bisected("components", onnx_folder, checkpoint)
    assert report.verdict == "passed"
    assert only_section(report).conclusion.startswith("nothing to explain")
    assert only_section(report).self_difference == 0


def test_swaps_cross_formats(checkpoint: Path, openvino_folder: Path) -> None:
    report = bisected("components", openvino_folder, checkpoint)
    assert report.verdict == "passed"
    ran = {trial.name: trial.ran for trial in only_section(report).trials}
    assert ran["reference but for unet"] == "fp32"


def test_a_refiner_has_six_runs(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny", kind="refiner")
    request = ExportRequest(checkpoint=checkpoint, output=tmp_path, formats=["onnx"], num_jobs=1)
    bundle = export_bundles(request)["onnx"]
    report = bisected("components", bundle, checkpoint)
    assert report.verdict == "passed"
    assert {share.name for share in only_section(report).shares} == {
        "text_encoder_2",
        "unet",
        "vae_decoder",
    }
    assert len(only_section(report).trials) == 6


def test_a_bundle_that_lacks_a_component_cannot_be_swapped(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    (folder / "text_encoder" / "model.onnx").unlink()
    with pytest.raises(BundleError, match="want text_encoder"):
        bisected("components", folder, checkpoint)


# --- passes --------------------------------------------------------------------------------------


def scaled_in_the_denormals(model: onnx.ModelProto) -> None:
    """A graph that is right as it stands, and wrong once ConvMulFusion has rewritten it.

    The last convolution's input is multiplied by 1e30, and its output by 2e-43 and by what is left.
    Every product is a normal number; but the fusion multiplies the weights by 2e-43, which leaves
    them 7 bits.
    """
    (conv,) = [node for node in model.graph.node if "unet.conv_out.weight" in node.input]
    up, down = np.float32(1e30), np.float32(2e-43)
    back = np.float32(1 / (np.float64(up) * np.float64(down)))
    set_weight(model, conv.input[2], lambda values: values * up)
    for name, value in (("up", up), ("down", down), ("back", back)):
        constant = onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        model.graph.initializer.append(constant)
    make, source, target = onnx.helper.make_node, conv.input[0], conv.output[0]
    conv.input[0], conv.output[0] = "lifted", "convolved"
    nodes = list(model.graph.node)
    place = nodes.index(conv)
    nodes[place : place + 1] = [
        make("Mul", [source, "up"], ["lifted"]),
        conv,
        make("Mul", ["convolved", "down"], ["lowered"]),
        make("Mul", ["lowered", "back"], [target]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def test_a_pass_that_spoils_a_graph_is_named(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    bundle = plant(onnx_folder, tmp_path / "bundle", "unet", scaled_in_the_denormals)

    report = bisected("passes", bundle, checkpoint)

    section = only_section(report)
    assert report.verdict == "failed"
    (share,) = section.shares
    assert share.name == "ConvMulFusion"
    assert share.share > 0.99
    assert share.without < 1e-5
    errors = {trial.name: trial.error for trial in section.trials}
    assert errors["basic"] > 1e-3 > 1e-5 > errors["disabled"]
    assert section.conclusion.startswith("ConvMulFusion carries 100 % of the error")


def test_no_pass_matters_to_a_sound_graph(checkpoint: Path, onnx_folder: Path) -> None:
    report = bisected("passes", onnx_folder, checkpoint, component="vae_decoder")
    section = only_section(report)
    assert report.verdict == "passed"
    assert [trial.name for trial in section.trials] == ["layout", "extended", "basic", "disabled"]
    assert [trial.switches["graph_optimization"] for trial in section.trials] == [
        "layout",
        "extended",
        "basic",
        "disabled",
    ]
    assert "no pass matters" in section.conclusion


def test_no_pass_is_named_for_what_a_weight_did(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    fault = changed_weight("unet.conv_in.weight")
    bundle = plant(onnx_folder, tmp_path / "bundle", "unet", fault)
    section = only_section(bisected("passes", bundle, checkpoint))
    assert section.needs_explaining
    assert section.conclusion.startswith("no pass matters")
    assert section.shares == ()


def test_passes_are_onnxruntime_s(checkpoint: Path, openvino_folder: Path) -> None:
    with pytest.raises(UsageError, match="got openvino, want onnxruntime"):
        bisected("passes", openvino_folder, checkpoint)


# --- precision -----------------------------------------------------------------------------------

NEEDS_BF16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="OpenVINO computes in float32 by default on this CPU, which has no bf16",
)


@NEEDS_BF16
def test_what_the_device_chooses_is_named(checkpoint: Path, openvino_folder: Path) -> None:
    report = bisected("precision", openvino_folder, checkpoint)

    image, unet = report.sections
    assert report.verdict == "failed"
    assert (image.subject, unet.subject) == ("image", "unet")
    assert image.shares[0].name == "unet"
    assert image.trials[0].name == "fp32"
    assert image.trials[0].error < 1e-4
    first, *others = [share for share in unet.shares if share.alone is not None]
    assert first.name == "INFERENCE_PRECISION_HINT=bf16"
    assert first.share > 0.99
    assert first.without < 1e-5
    assert not any(share.carries for share in others)
    (mode,) = [share for share in unet.shares if share.alone is None]
    assert mode.name == "EXECUTION_MODE_HINT=PERFORMANCE"
    assert mode.without < 1e-5


@NEEDS_BF16
def test_a_precision_that_was_asked_for_is_held_against_float32(
    checkpoint: Path, openvino_folder: Path, tmp_path: Path
) -> None:
    settings = replace(ONE_THREAD, precision="bf16")
    bundle = with_only(openvino_folder, tmp_path / "bundle", "unet")
    unet = only_section(bisected("precision", bundle, checkpoint, settings=settings))
    assert unet.whole.name == "bf16"
    assert [share.name for share in unet.shares] == ["--precision=bf16"]
    assert unet.shares[0].without < 1e-5


CPU_FLAGS = Path("/proc/cpuinfo")
NEEDS_VNNI = pytest.mark.skipif(
    not CPU_FLAGS.is_file() or "vnni" not in CPU_FLAGS.read_text(encoding="utf-8"),
    reason="without VNNI OpenVINO does not round activations to int8, whatever its property says",
)


@NEEDS_VNNI
def test_activations_beside_int8_weights_are_told_apart(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    from triptych.exporters.base import ExportSettings

    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path,
        formats=["openvino"],
        components=["text_encoder"],
        settings=ExportSettings(precision="int8"),
        num_jobs=1,
        measure_steps=0,
    )
    bundle = export_bundles(request)["openvino"]
    section = only_section(bisected("precision", bundle, checkpoint, component="text_encoder"))
    shares = {share.name.partition("=")[0]: share for share in section.shares}
    rounding = shares["DYNAMIC_QUANTIZATION_GROUP_SIZE"]
    assert rounding.alone is not None
    assert rounding.alone > 1e-3  # beyond what the weights cost, which no switch mends
    assert section.trials[0].error > 1e-3


def test_a_core_ml_program_is_held_against_float32(
    checkpoint: Path, coreml_folder: Path, tmp_path: Path
) -> None:
    bundle = with_only(coreml_folder, tmp_path / "bundle", "text_encoder")
    section = only_section(
        bisected(
            "precision", bundle, checkpoint, runtime="coreml-reference", component="text_encoder"
        )
    )
    assert not section.needs_explaining
    assert [share.name for share in section.shares] == ["numeric_mode=declared"]


def test_onnxruntime_has_no_precision_to_choose(checkpoint: Path, onnx_folder: Path) -> None:
    with pytest.raises(UsageError, match="triptych bisect export"):
        bisected("precision", onnx_folder, checkpoint)


# --- export --------------------------------------------------------------------------------------


def saved_by_openvino(openvino_folder: Path, graph: bytes | Path, target: Path) -> Path:
    """Another exporter's bundle, its U-Net as save_model leaves it: all constants in fp16."""
    folder = shutil.copytree(openvino_folder, target)
    (folder / "triptych.json").unlink()
    model = openvino.Core().read_model(graph)
    openvino.save_model(model, folder / "unet" / "openvino_model.xml")
    return folder


def test_a_sinusoid_in_fp16_is_named(
    checkpoint: Path, openvino_folder: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    graph = onnx_folder / "unet" / "model.onnx"
    bundle = saved_by_openvino(openvino_folder, graph, tmp_path / "bundle")

    report = bisected("export", bundle, checkpoint, num_inference_steps=4)  # from t=751 on

    section = only_section(report)
    assert report.verdict == "failed"
    assert section.row.limit_source == "floor"  # 1e-2, the constant, would have let it pass
    assert section.trials[0].name == "fp16"
    kinds = {likeness.name: likeness.kind for likeness in section.likenesses}
    assert kinds == {
        "fp16 with the sinusoid in fp16": "same",
        "fp16": "other",
        "fp32": "other",
        "bf16": "other",
        "int8": "other",
        "int4": "other",
    }
    assert section.conclusion == "the bundle's error is that of: fp16 with the sinusoid in fp16"


def test_another_fine_tune_is_the_file_s_own_fault(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    fault = changed_weight("encoder.text_model.embeddings.token_embedding.weight")
    bundle = plant(onnx_folder, tmp_path / "bundle", "text_encoder", fault)
    section = only_section(bisected("export", bundle, checkpoint, component="text_encoder"))
    assert section.needs_explaining
    assert {likeness.kind for likeness in section.likenesses} == {"other"}
    assert section.conclusion.startswith("the file itself is at fault: exported afresh")


def test_a_sound_bundle_s_error_is_its_own_settings(checkpoint: Path, onnx_folder: Path) -> None:
    section = only_section(bisected("export", onnx_folder, checkpoint, component="text_encoder"))
    assert section.conclusion.startswith("nothing to explain")
    first = section.likenesses[0]
    assert (first.name, first.kind) == ("fp32", "same")
    # No trial of a rounded sinusoid: a text encoder has none.
    assert [trial.name for trial in section.trials] == ["fp32", "fp16", "int8", "int4"]


def test_nothing_is_left_behind(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bisected("export", onnx_folder, checkpoint, component="text_encoder")
    assert not list(tmp_path.glob("triptych-bisect-*"))


# --- what cannot be bisected ---------------------------------------------------------------------


def test_another_scheduler_is_not_compared(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    path = folder / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "timestep_spacing": "trailing"}), encoding="utf-8")
    with pytest.raises(IncomparableError, match="timestep_spacing"):
        bisected("components", folder, checkpoint)


def test_a_device_that_is_not_there_is_an_error(checkpoint: Path, onnx_folder: Path) -> None:
    settings = RuntimeSettings(device="NoSuchProvider")
    for what in ("components", "passes"):
        with pytest.raises(BackendError, match="NoSuchProvider"):
            bisected(what, onnx_folder, checkpoint, settings=settings)


def test_a_component_that_is_not_there_is_an_error(checkpoint: Path, onnx_folder: Path) -> None:
    with pytest.raises(BundleError, match="want preview_decoder"):
        bisected("passes", onnx_folder, checkpoint, component="preview_decoder")


def test_lines_say_what_a_stopped_trial_said(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    fault = changed_weight("unet.conv_in.weight", math.nan)
    bundle = plant(onnx_folder, tmp_path / "bundle", "unet", fault)
    report = bisected("passes", bundle, checkpoint)
    lines = list(section_lines(report, only_section(report)))
    assert report.verdict == "failed"
    assert any("not run" in line and "NaN" in line for line in lines)
