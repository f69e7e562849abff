"""What locating refuses, what taps may not change, weights beside the graph, and the command."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest

from triptych.bundle.bundle import Bundle
from triptych.cli.app import main
from triptych.errors import BrokenInputError, BundleError, NonFiniteError, UsageError
from triptych.parity import locate as rules
from triptych.runtimes import make_runtime
from triptych.runtimes._taps.base import Tap, Tapped
from triptych.runtimes._taps.by_scope import Bound
from triptych.runtimes._taps.onnxruntime import OnnxRuntimeTapper
from triptych.runtimes._taps.parameter_names import ParameterNames
from triptych.runtimes._taps.sketch import sketch
from triptych.runtimes._taps.trace import Trace
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.types import TensorMap
from triptych.workflows import locate as workflow
from triptych.workflows.locate import LocateRequest, locate

pytestmark = pytest.mark.slow

Change: TypeAlias = Callable[[Path], None]
Changed: TypeAlias = Callable[[Path, Change], Path]


def quiet(_: str) -> None:
    """Report to nobody."""


def ids(batch: int = 1) -> dict[str, np.ndarray]:
    return {"input_ids": np.tile(np.arange(77, dtype=np.int64), (batch, 1))}


# --- taps ----------------------------------------------------------------------------------------


@pytest.fixture
def tapper(onnx_bundle: Bundle) -> OnnxRuntimeTapper:
    runtime = make_runtime("onnxruntime")
    assert isinstance(runtime, OnnxRuntime)
    return OnnxRuntimeTapper(runtime, onnx_bundle.artifact("text_encoder"))


HIDDEN = "/encoder/text_model/encoder/layers.1/Add_1_output_0"


def test_a_sketch_in_the_graph_is_the_one_of_the_whole_value(tapper: OnnxRuntimeTapper) -> None:
    tap = Tap(value=HIDDEN, shape=(2, 77, 32))
    whole = tapper.fetch(ids(2), [tap])[HIDDEN]
    seen = tapper.measure(ids(2), [tap]).sketches[HIDDEN]
    assert whole.shape == seen.shape == (2, 77, 32)
    expected = sketch(whole).projected
    assert np.linalg.norm(seen.projected - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", [(1, 77, 32), (4, 100), (1,)])
def test_a_value_of_another_shape_than_expected_says_so(
    shape: tuple[int, ...], tapper: OnnxRuntimeTapper
) -> None:
    seen = tapper.measure(ids(2), [Tap(value=HIDDEN, shape=shape)]).sketches[HIDDEN]
    assert seen.shape == (2, 77, 32)


def test_weights_beside_the_graph_stay_there(
    onnx_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    """As those of a full-size U-Net do; only the graph is handed to the engine."""

    def outside(bundle: Path) -> None:
        path = bundle / "text_encoder" / "model.onnx"
        model = onnx.load(path)
        (weight,) = [
            each
            for each in model.graph.initializer
            if each.name == "encoder.text_model.encoder.layers.0.mlp.fc2.weight"
        ]
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3] *= -1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location="model.onnx_data",
            size_threshold=0,
        )

    bundle = changed(onnx_folder, outside)
    before = sorted(path for path in bundle.rglob("*"))
    request = LocateRequest(bundle=bundle, reference=checkpoint, component="text_encoder")
    (finding,) = locate(request, report=quiet).findings
    assert finding.site.module == "text_model.encoder.layers.0.mlp.fc2"
    assert finding.weights[0].comparison.max_abs_index[1] == 3  # stored transposed
    assert sorted(path for path in bundle.rglob("*")) == before


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_taps_that_change_the_result_are_told(
    factor: float, onnx_folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = OnnxRuntimeTapper.measure

    def disturbed(self: OnnxRuntimeTapper, feed: TensorMap, taps: list[Tap]) -> Tapped:
        tapped = measure(self, feed, taps)
        outputs = {name: array * np.float32(factor) for name, array in tapped.outputs.items()}
        return replace(tapped, outputs=outputs)

    monkeypatch.setattr(OnnxRuntimeTapper, "measure", disturbed)
    request = LocateRequest(
        bundle=onnx_folder, reference=checkpoint, component="text_encoder", taps_per_run=100
    )
    report = locate(request, report=quiet)
    assert not report.findings
    assert report.verdict == "failed"
    (problem,) = report.problems
    assert problem.startswith("tapping changed the result by ")


def test_a_value_that_is_no_tensor_of_the_references_is_left_out(
    onnx_folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may mislead; another shape shows it."""
    bind = OnnxRuntimeTapper.bind
    heads = "/encoder/text_model/encoder/layers.1/self_attn/Transpose_output_0"

    def misled(self: OnnxRuntimeTapper, trace: Trace, names: ParameterNames) -> tuple[Bound, ...]:
        found = bind(self, trace, names)
        assert heads in self.graph.producers
        return (*found, replace(found[-1], value=heads))

    request = LocateRequest(
        bundle=onnx_folder, reference=checkpoint, component="text_encoder", taps_per_run=100
    )
    before = locate(request, report=quiet)
    monkeypatch.setattr(OnnxRuntimeTapper, "bind", misled)
    after = locate(request, report=quiet)
    assert after.verdict == "passed"
    assert after.num_sites == before.num_sites


def test_a_suspect_that_does_well_alone_is_no_source(
    onnx_folder: Path, checkpoint: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that a source spoils is suspected here."""
    monkeypatch.setattr(rules, "GROWTH", 0.0)
    request = LocateRequest(
        bundle=changed(onnx_folder, spoil_text_encoder),
        reference=checkpoint,
        component="text_encoder",
        taps_per_run=100,
    )
    report = locate(request, report=quiet)
    (finding,) = report.findings
    assert finding.site.module == "text_model.encoder.layers.2.self_attn.out_proj"


def test_an_error_without_a_source_is_told(
    onnx_folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when rounding adds up: the output is too far, and no operator alone is."""
    monkeypatch.setattr(workflow, "COMPONENT_REL_L2", {"fp32": 1e-9})
    request = LocateRequest(
        bundle=onnx_folder, reference=checkpoint, component="text_encoder", taps_per_run=100
    )
    report = locate(request, report=quiet)
    assert report.verdict == "failed"
    assert "step by step" in report.problems[0]


# --- what is refused -----------------------------------------------------------------------------


def test_names_that_tell_no_module_are_an_error(
    onnx_folder: Path, checkpoint: Path, changed: Changed
) -> None:
    def rename(bundle: Path) -> None:
        path = bundle / "text_encoder" / "model.onnx"
        model = onnx.load(path)
        text = {name for node in model.graph.node for name in (*node.input, *node.output)}
        short = {name: f"value_{at}" for at, name in enumerate(sorted(text)) if "/" in name}
        for at, node in enumerate(model.graph.node):
            node.name = f"node_{at}"
            for names in (node.input, node.output):
                names[:] = [short.get(name, name) for name in names]
        onnx.save(model, path)

    request = LocateRequest(
        bundle=changed(onnx_folder, rename), reference=checkpoint, component="text_encoder"
    )
    with pytest.raises(BrokenInputError, match="no name tells a module"):
        locate(request, report=quiet)


def test_what_cannot_be_looked_into_is_refused(
    checkpoint: Path, onnx_folder: Path, coreml_folder: Path
) -> None:
    request = LocateRequest(bundle=coreml_folder, reference=checkpoint)
    with pytest.raises(UsageError, match="shows nothing of its inside"):
        locate(replace(request, runtime="coreml"), report=quiet)
    with pytest.raises(UsageError, match="an engine with taps reads"):
        locate(replace(request, bundle=checkpoint), report=quiet)
    with pytest.raises(UsageError, match="timestep: got one for vae_decoder"):
        locate(replace(request, component="vae_decoder", timestep=1.0), report=quiet)
    with pytest.raises(BrokenInputError, match="in onnx format as the reference"):
        locate(replace(request, reference=onnx_folder), report=quiet)


def test_a_component_that_is_not_there_is_refused(checkpoint: Path, onnx_folder: Path) -> None:
    request = LocateRequest(bundle=onnx_folder, reference=checkpoint, component="preview_decoder")
    with pytest.raises(BundleError, match="want preview_decoder"):
        locate(request, report=quiet)


def test_another_model_cannot_be_compared(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    path = other / "unet" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "cross_attention_dim": 96}), encoding="utf-8")
    request = LocateRequest(bundle=onnx_folder, reference=other)
    with pytest.raises(BrokenInputError):
        locate(request, report=quiet)


def test_a_reference_with_nan_is_no_reference(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(checkpoint, tmp_path / "other")
    path = other / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["text_model.final_layer_norm.bias"][0] = np.nan
    save_file(weights, path, metadata={"format": "pt"})
    request = LocateRequest(bundle=onnx_folder, reference=other, component="text_encoder")
    with pytest.raises(NonFiniteError, match="the reference's own"):
        locate(request, report=quiet)


# --- the command ---------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["triptych", "locate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def spoil_text_encoder(bundle: Path) -> None:
    path = bundle / "text_encoder" / "model.onnx"
    model = onnx.load(path)
    (weight,) = [
        each
        for each in model.graph.initializer
        if each.name == "encoder.text_model.encoder.layers.2.self_attn.out_proj.weight"
    ]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[5, 2] += 3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def test_the_command_names_the_operator_and_ends_with_1(
    onnx_folder: Path,
    checkpoint: Path,
    changed: Changed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = changed(onnx_folder, spoil_text_encoder)
    options = (bundle, "--reference", checkpoint, "--component", "text_encoder")
    assert command(monkeypatch, *options) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "text_encoder text_model.encoder.layers.2.self_attn.out_proj  "
        "/encoder/text_model/encoder/layers.2/self_attn/out_proj/MatMul (MatMul)  input "
    )
    assert "FAIL: encoder.text_model.encoder.layers.2.self_attn.out_proj.weight differs" in first
    assert "3 at [2, 5]" in first
    assert last.startswith("failed: text_encoder, a long prompt, on onnxruntime ")

    assert command(monkeypatch, *options, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "failed"
    (finding,) = document["findings"]
    assert finding["operator_type"] == "MatMul"
    assert finding["block"] == "text_model.encoder.layers.2"


def test_the_command_finds_nothing_and_ends_with_0(
    onnx_folder: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = (onnx_folder, "--reference", checkpoint, "--component", "vae_encoder")
    assert command(monkeypatch, *options, "--taps-per-run", "50") == 0
    assert capsys.readouterr().out.startswith("passed: vae_encoder, ")
    assert command(monkeypatch, *options, "--taps-per-run", "0") == 2
    assert command(monkeypatch, *options, "--timestep", "5") == 2
    assert command(monkeypatch, *options, "--reference-device", "abacus") == 4
    assert command(monkeypatch, *options, "--device", "abacus") == 4
