"""OpenVINO computes in what it was told to, or says that it did not."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import openvino
import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import BackendError, BundleError, UsageError
from triptych.exporters.base import ExportSettings
from triptych.models.feeds import unet_feed
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.metrics import rel_l2
from triptych.parity.record import default_settings, record
from triptych.parity.recording import Recording
from triptych.parity.report import CandidateReport, Row
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.checked import open_session
from triptych.runtimes.openvino import OpenVino
from triptych.types import Array, ComponentName, Precision
from triptych.workflows.check_candidates import declared_precisions
from triptych.workflows.doctor import diagnose
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.runtime_choice import choose_runtime

CAPABILITIES = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(
    "BF16" not in CAPABILITIES, reason="this processor has no bfloat16, so float32 is the default"
)


@pytest.fixture(scope="module")
def recording(checkpoint_bundle: Bundle) -> Recording:
    """PyTorch's side of a check of eight steps."""
    settings = default_settings(checkpoint_bundle.config, num_inference_steps=8)
    return record(checkpoint_bundle, make_runtime("pytorch"), settings, report=lambda _: None)


@pytest.fixture(scope="module")
def int8_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(checkpoint, tmp_path_factory.mktemp("int8"), "int8")


@pytest.fixture(scope="module")
def dynamic_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(checkpoint, tmp_path_factory.mktemp("dynamic"), "int8-dynamic")


@pytest.fixture(scope="module")
def bf16_bundle(openvino_bf16_folder: Path) -> Bundle:
    return open_bundle(openvino_bf16_folder)


def exported(checkpoint: Path, output: Path, precision: Precision) -> Bundle:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=output,
        formats=["openvino"],
        settings=ExportSettings(precision=precision),
        measure_steps=0,
    )
    return open_bundle(export_bundles(request)["openvino"])


def run_check(recording: Recording, bundle: Bundle, runtime: Runtime) -> CandidateReport:
    settings = runtime.settings if isinstance(runtime, OpenVino) else RuntimeSettings()
    candidate = Candidate(
        bundle=bundle, runtime=runtime, precisions=declared_precisions(bundle, settings)
    )
    return check(recording, candidate, report=lambda _: None).report


def rows_of(report: CandidateReport, stage: str) -> list[Row]:
    return [row for row in report.rows if row.stage == stage]


def worst(rows: list[Row]) -> float:
    return max(row.rel_l2 for row in rows if row.rel_l2 is not None)


def predict(bundle: Bundle, runtime: Runtime, *, timestep: float) -> Array:
    random = np.random.default_rng(0)
    feed = unet_feed(bundle.config, batch=2, height=8, width=8, random=random)
    with open_session(runtime, bundle, "unet") as unet:
        return unet.run({**feed, "timestep": np.array(timestep, np.float32)})["noise_pred"]


def test_float32_agrees_with_pytorch_through_eight_steps(
    recording: Recording, openvino_bundle: Bundle
) -> None:
    report = run_check(recording, openvino_bundle, make_runtime("openvino"))
    assert report.verdict == "passed"
    free = rows_of(report, "free_running")
    assert len(free) == 8
    assert worst(free) < 1e-4
    precisions = rows_of(report, "precision")
    assert len(precisions) == 5
    assert {row.case for row in precisions} == {"declared fp32, ran fp32"}


@needs_bf16
def test_left_at_its_default_openvino_fails_the_check_of_float32(
    recording: Recording, openvino_bundle: Bundle
) -> None:
    runtime = OpenVino(settings=RuntimeSettings(), force_precision=False)
    report = run_check(recording, openvino_bundle, runtime)
    assert report.verdict == "failed"
    precisions = rows_of(report, "precision")
    assert len(precisions) == 5
    assert {row.verdict for row in precisions} == {"failed"}
    assert {row.reason for row in precisions} == {"declared fp32, ran bf16"}
    # The numbers fail as well: it is not only a matter of words.
    assert worst(rows_of(report, "free_running")) > 1e-3


@needs_bf16
def test_bf16_that_was_asked_for_passes_in_its_class(
    recording: Recording, openvino_bundle: Bundle
) -> None:
    runtime = make_runtime("openvino", RuntimeSettings(precision="bf16"))
    report = run_check(recording, openvino_bundle, runtime)
    assert {row.case for row in rows_of(report, "precision")} == {"declared bf16, ran bf16"}
    assert {row.precision for row in report.rows} == {"bf16"}
    assert report.verdict == "passed"


@needs_bf16
def test_bf16_leaves_the_sinusoids_exact(
    openvino_bundle: Bundle, onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    """A timestep of 999 is 1000 in bfloat16; the export's marks keep it from being rounded."""
    expected = predict(checkpoint_bundle, make_runtime("pytorch"), timestep=999.0)
    bf16 = make_runtime("openvino", RuntimeSettings(precision="bf16"))
    assert rel_l2(predict(openvino_bundle, bf16, timestep=999.0), expected) < 5e-2
    # An ONNX graph has no such marks: this is what they keep from us.
    assert rel_l2(predict(onnx_bundle, bf16, timestep=999.0), expected) > 1e-1


@needs_bf16
@pytest.mark.parametrize("fixture", ["openvino_bundle", "bf16_bundle"])
def test_bf16_leaves_them_exact_for_clients_that_hand_over_integers(
    fixture: str, checkpoint_bundle: Bundle, request: pytest.FixtureRequest
) -> None:
    """GenAI and optimum do, and many a CPU computes in bfloat16 unasked."""
    bundle: Bundle = request.getfixturevalue(fixture)
    expected = predict(checkpoint_bundle, make_runtime("pytorch"), timestep=999.0)
    random = np.random.default_rng(0)
    feed = unet_feed(bundle.config, batch=2, height=8, width=8, random=random)
    artifact = bundle.artifact("unet")
    names = {binding.name: binding.artifact_name for binding in artifact.bindings.inputs}
    inputs = {names[name]: tensor for name, tensor in feed.items()}
    inputs[names["timestep"]] = np.array([999], np.int64)
    client = openvino.Core().compile_model(
        artifact.path, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}
    )
    assert rel_l2(client(inputs)[0], expected) < 5e-2


@needs_bf16
def test_a_bf16_bundle_passes_in_its_class_unasked(
    recording: Recording, bf16_bundle: Bundle
) -> None:
    report = run_check(recording, bf16_bundle, make_runtime("openvino"))
    assert report.verdict == "passed"
    cases = {row.component: row.case for row in rows_of(report, "precision") if "ran" in row.case}
    assert cases == {
        name: f"declared {word}, ran {word}"
        for name in bf16_bundle.artifacts
        for word in ["fp32" if name.startswith("vae") else "bf16"]
    }
    assert worst(rows_of(report, "free_running")) > 1e-3


@needs_bf16
@pytest.mark.parametrize("timestep", [999.0, 500.25])
def test_a_bf16_bundle_keeps_the_sinusoids_exact(
    timestep: float, bf16_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    expected = predict(checkpoint_bundle, make_runtime("pytorch"), timestep=timestep)
    for settings in (RuntimeSettings(), RuntimeSettings(precision="bf16")):
        engine = make_runtime("openvino", settings)
        assert rel_l2(predict(bf16_bundle, engine, timestep=timestep), expected) < 4e-2


@needs_bf16
def test_a_bf16_graph_is_not_passed_off_as_float32(bf16_bundle: Bundle) -> None:
    engine = make_runtime("openvino", RuntimeSettings(precision="fp32"))
    with pytest.raises(BackendError, match=r"got bf16 from CPU.*, want fp32 as asked for"):
        engine.open(bf16_bundle.artifact("text_encoder"))


OPEN_TEXT_ENCODER = """
import sys
from pathlib import Path
from triptych.bundle.bundle import open_bundle
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import open_session

bundle = open_bundle(Path(sys.argv[1]))
with open_session(make_runtime("openvino"), bundle, "text_encoder") as session:
    print(session.execution.declared_precision, session.execution.precision)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is x86's")
def test_a_processor_without_bfloat16_widens_a_bf16_graph(bf16_bundle: Bundle) -> None:
    """Where bfloat16 was not asked for, float32 is no failure."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_TEXT_ENCODER, bf16_bundle.folder],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["fp32", "fp32"]


def test_int8_weights_pass_in_their_class_and_are_reported(
    recording: Recording, int8_bundle: Bundle
) -> None:
    report = run_check(recording, int8_bundle, make_runtime("openvino"))
    assert report.verdict == "passed"
    classes = {row.component: row.precision for row in rows_of(report, "component")}
    assert classes["unet"] == classes["text_encoder"] == "int8"
    assert classes["vae_decoder"] == "fp32"
    # Widened before they are multiplied: the arithmetic stays float32.
    assert {row.case for row in rows_of(report, "precision")} == {"declared fp32, ran fp32"}
    assert worst(rows_of(report, "free_running")) > 1e-3


def test_activations_beside_int8_weights_are_rounded_only_by_default(int8_bundle: Bundle) -> None:
    left = OpenVino(settings=RuntimeSettings(), force_precision=False)
    with open_session(left, int8_bundle, "unet") as unet:
        assert unet.execution.precision == "int8-dynamic"
    with open_session(make_runtime("openvino"), int8_bundle, "unet") as unet:
        assert unet.execution.precision == "fp32"
        assert unet.execution.details["dynamic_quantization_group_size"] == "0"


def test_activations_are_rounded_where_the_bundle_says_so(
    recording: Recording, dynamic_bundle: Bundle
) -> None:
    """Weights of int8-dynamic are those of int8; what differs is what they are multiplied with."""
    report = run_check(recording, dynamic_bundle, make_runtime("openvino"))
    assert report.verdict == "passed"
    cases = {row.component: row.case for row in rows_of(report, "precision")}
    assert cases["unet"] == "declared int8-dynamic, ran int8-dynamic"
    assert cases["vae_decoder"] == "declared fp32, ran fp32"
    assert {row.precision for row in rows_of(report, "component") if row.component == "unet"} == {
        "int8-dynamic"
    }


@needs_bf16
def test_the_rest_of_int8_dynamic_can_be_computed_in_bf16(dynamic_bundle: Bundle) -> None:
    runtime = make_runtime("openvino", RuntimeSettings(precision="bf16"))
    with open_session(runtime, dynamic_bundle, "text_encoder") as encoder:
        assert encoder.execution.precision == "int8-dynamic"
        assert encoder.execution.details["inference_precision_hint"] == "bf16"


def test_a_bundle_that_rounds_nothing_it_should_fails_the_check(
    recording: Recording, dynamic_bundle: Bundle
) -> None:
    """The fault: an engine, or a switch, that leaves activations in float32 after all."""
    runtime = OpenVino(
        settings=RuntimeSettings(), properties={"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    )
    report = run_check(recording, dynamic_bundle, runtime)
    assert report.verdict == "failed"
    failed = {row.reason for row in rows_of(report, "precision") if row.verdict == "failed"}
    assert failed == {"declared int8-dynamic, ran fp32"}


@pytest.mark.skipif("FP16" in CAPABILITIES, reason="this processor computes in float16")
def test_a_precision_the_device_replaces_is_an_error(openvino_bundle: Bundle) -> None:
    runtime = make_runtime("openvino", RuntimeSettings(precision="fp16"))
    with pytest.raises(BackendError, match="want fp16 as asked for"):
        runtime.open(openvino_bundle.artifact("text_encoder"))


def test_int8_is_nothing_to_compute_in(openvino_bundle: Bundle) -> None:
    runtime = make_runtime("openvino", RuntimeSettings(precision="int8"))
    with pytest.raises(UsageError, match="int8 is how an export stores weights"):
        runtime.open(openvino_bundle.artifact("text_encoder"))


def test_an_onnx_bundle_runs_on_both_engines(onnx_bundle: Bundle, recording: Recording) -> None:
    assert runtimes_for("onnx") == ("onnxruntime", "openvino")
    assert choose_runtime(onnx_bundle, None, RuntimeSettings()).name == "onnxruntime"
    runtime = choose_runtime(onnx_bundle, "openvino", RuntimeSettings())
    report = run_check(recording, onnx_bundle, runtime)
    assert report.verdict == "passed"
    assert {execution.runtime for execution in report.executions.values()} == {"openvino"}


def test_a_timestep_between_two_integers_is_not_rounded(
    openvino_bundle: Bundle, checkpoint_bundle: Bundle
) -> None:
    """The graph takes int64, as GenAI wants it; the runtime takes the fraction in before that."""
    runtime, reference = make_runtime("openvino"), make_runtime("pytorch")
    expected = predict(checkpoint_bundle, reference, timestep=946.42)
    assert rel_l2(predict(openvino_bundle, runtime, timestep=946.42), expected) < 1e-5
    assert rel_l2(predict(checkpoint_bundle, reference, timestep=946.0), expected) > 1e-3


def test_static_axes_compile_for_one_size(openvino_bundle: Bundle) -> None:
    axes = {"batch": 2, "height": 8, "width": 8}
    static = OpenVino(settings=RuntimeSettings(), static_axes=axes)
    session = static.open(openvino_bundle.artifact("unet"))
    assert {port.name: port.shape for port in session.inputs}["sample"] == (2, 4, 8, 8)
    session.close()
    expected = predict(openvino_bundle, make_runtime("openvino"), timestep=500.0)
    assert rel_l2(predict(openvino_bundle, static, timestep=500.0), expected) < 1e-5


@needs_bf16
@pytest.mark.parametrize("fixture", ["openvino_bundle", "bf16_bundle"])
def test_static_axes_are_right_in_bfloat16(
    fixture: str, checkpoint_bundle: Bundle, request: pytest.FixtureRequest
) -> None:
    """Left alone, OpenVINO 2026.4 fuses them into kernels that are wrong: by 0.3 on AVX-512."""
    bundle: Bundle = request.getfixturevalue(fixture)
    axes, settings = {"batch": 2, "height": 8, "width": 8}, RuntimeSettings(precision="bf16")
    expected = predict(checkpoint_bundle, make_runtime("pytorch"), timestep=500.0)
    static = OpenVino(settings=settings, static_axes=axes)
    assert rel_l2(predict(bundle, static, timestep=500.0), expected) < 5e-2


def test_static_axes_that_sdxl_has_not_are_refused(openvino_bundle: Bundle) -> None:
    static = OpenVino(settings=RuntimeSettings(), static_axes={"depth": 8})
    with pytest.raises(UsageError, match="got static axes depth, want batch, height, width"):
        static.open(openvino_bundle.artifact("unet"))


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_a_nan_in_one_weight_fails_the_check_and_names_the_component(
    component: ComponentName, recording: Recording, openvino_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(openvino_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()  # so that no hash tells
    plant_nan(folder / component / "openvino_model.xml")
    report = run_check(recording, open_bundle(folder), make_runtime("openvino"))
    assert report.verdict == "failed"
    failed = [row for row in report.rows if row.verdict == "failed"]
    assert {row.stage for row in failed} == {"finiteness"}
    assert {row.component for row in failed} == {component}
    assert all("NaN" in row.reason for row in failed)
    measured = {row.component for row in report.rows if row.stage == "component"}
    assert component not in measured


def plant_nan(graph: Path) -> None:
    """Make the first element of the graph's first bias NaN."""
    layers = ET.parse(graph).iter("layer")  # noqa: S314  it was written here
    biases = [layer for layer in layers if str(layer.get("name")).endswith(".bias")]
    data = biases[0].find("data")
    assert data is not None
    with graph.with_suffix(".bin").open("r+b") as stream:
        stream.seek(int(data.attrib["offset"]))
        stream.write(np.array(np.nan, np.float32).tobytes())


def test_a_device_that_shows_no_nodes_declares_nothing(
    openvino_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an NPU: what was not read back is not called a match."""

    def refuse(_: object) -> None:
        raise RuntimeError("Not implemented")

    monkeypatch.setattr(openvino.CompiledModel, "get_runtime_model", refuse)
    with open_session(make_runtime("openvino"), openvino_bundle, "text_encoder") as session:
        assert session.execution.declared_precision is None
        assert session.execution.precision == "fp32"
        assert session.execution.details["nodes"] == ""


def test_a_compiled_network_is_kept_and_used_again(openvino_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cached = make_runtime("openvino", RuntimeSettings(cache_dir=folder))
    first = predict(openvino_bundle, cached, timestep=500.0)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.blob")}
    assert len(written) == 1
    with open_session(cached, openvino_bundle, "unet") as unet:
        assert unet.execution.details["loaded_from_cache"] == "true"
        assert unet.execution.precision == "fp32"
    again = predict(openvino_bundle, cached, timestep=500.0)
    np.testing.assert_array_equal(again, first)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.blob")} == written


def test_a_kept_network_does_not_bring_another_bundles_weights(
    openvino_bundle: Bundle, openvino_folder: Path, tmp_path: Path
) -> None:
    """What is kept holds no weights, so the networks of two bundles look alike."""
    cached = make_runtime("openvino", RuntimeSettings(cache_dir=tmp_path / "cache"))
    first = predict(openvino_bundle, cached, timestep=500.0)
    folder = shutil.copytree(openvino_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    path = folder / "unet" / "openvino_model.bin"
    weights = np.fromfile(path, np.uint8)
    middle = weights.size // 8 * 4
    weights[middle : middle + 20000].view(np.float32)[...] *= 1.5
    weights.tofile(path)
    other = open_bundle(folder)
    expected = predict(other, make_runtime("openvino"), timestep=500.0)
    for _ in range(2):
        actual = predict(other, cached, timestep=500.0)
        np.testing.assert_array_equal(actual, expected)
    assert rel_l2(first, expected) > 1e-3


def test_openvino_keeps_no_cache_of_onnx_graphs(onnx_bundle: Bundle, tmp_path: Path) -> None:
    cached = make_runtime("openvino", RuntimeSettings(cache_dir=tmp_path))
    with pytest.raises(UsageError, match="keeps no cache of others"):
        cached.open(onnx_bundle.artifact("text_encoder"))


@pytest.mark.parametrize("name", ["onnxruntime", "pytorch"])
def test_engines_without_a_cache_refuse_one(
    name: str, onnx_bundle: Bundle, checkpoint_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = onnx_bundle if name == "onnxruntime" else checkpoint_bundle
    runtime = make_runtime(name, RuntimeSettings(cache_dir=tmp_path))
    with pytest.raises(UsageError, match="keeps no cache"):
        runtime.open(bundle.artifact("text_encoder"))


def test_the_probe_says_what_openvino_would_do_by_itself() -> None:
    (probe,) = (engine for engine in diagnose().engines if engine.runtime == "openvino")
    assert probe.installed
    assert "CPU" in probe.devices
    default = "bf16" if "BF16" in CAPABILITIES else "f32"
    assert probe.precision["CPU"] == f"{default} by default; triptych sets float32"


def test_a_file_that_is_no_network_is_named(openvino_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "openvino_model.xml"
    path.write_text("<net>")
    artifact = replace(openvino_bundle.artifact("unet"), path=path)
    with pytest.raises(BundleError, match=r"openvino_model\.xml: got"):
        make_runtime("openvino").open(artifact)


@pytest.mark.slow
def test_a_property_has_the_last_word(openvino_bundle: Bundle) -> None:
    unforced = OpenVino(
        settings=RuntimeSettings(num_threads=1),
        force_precision=False,
        properties={"EXECUTION_MODE_HINT": "ACCURACY"},
    )
    session = unforced.open(openvino_bundle.artifact("text_encoder"))
    assert session.execution.details["execution_mode_hint"] == "ACCURACY"
    assert session.execution.precision == "fp32"
    session.close()
