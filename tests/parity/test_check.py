"""Planted faults: each must fail the row that is about it, and a clean bundle must pass."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.recording import Recording, default_settings, record
from triptych.parity.report import CandidateReport, Row
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.types import Array, ComponentName

pytestmark = pytest.mark.slow

STEPS = 3
COMPONENTS = {"text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"}
Fault = Callable[[onnx.ModelProto], None]


def engine(name: str) -> Runtime:
    """One thread: on networks this small, several only wait for each other."""
    return make_runtime(name, RuntimeSettings(num_threads=1))


def record_reference(bundle: Bundle, *, seed: int = 0) -> Recording:
    usual = default_settings(bundle.config, num_inference_steps=STEPS, seed=seed)
    settings = replace(usual, height_px=64, width_px=72)
    return record(bundle, engine("pytorch"), settings, report=lambda _: None)


@pytest.fixture(scope="session")
def recording(checkpoint_bundle: Bundle) -> Recording:
    return record_reference(checkpoint_bundle)


def check_against(recording: Recording, bundle: Bundle) -> CandidateReport:
    candidate = Candidate(
        bundle=bundle,
        runtime=engine("onnxruntime"),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
    )
    return check(recording, candidate, report=lambda _: None).report


def plant(source: Path, target: Path, component: ComponentName, fault: Fault) -> Bundle:
    """A copy with one fault, as a foreign folder: no manifest knows that it was changed."""
    folder = shutil.copytree(source, target)
    (folder / "triptych.json").unlink()
    path = folder / component / "model.onnx"
    model = onnx.load(path)
    fault(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return open_bundle(folder)


def change_weight(name: str, change: Callable[[Array], None]) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        (weight,) = [found for found in model.graph.initializer if found.name == name]
        values = onnx.numpy_helper.to_array(weight).copy()
        change(values)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, name))

    return fault


def after_output(name: str, operator: str, *constants: Array) -> Fault:
    """Put one more operator between the graph and one of its outputs."""

    def fault(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = [f"{name}_right" if one == name else one for one in node.output]
            node.input[:] = [f"{name}_right" if one == name else one for one in node.input]
        names = [f"{name}_constant_{number}" for number in range(len(constants))]
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, one)
            for value, one in zip(constants, names, strict=True)
        )
        node = onnx.helper.make_node(operator, [f"{name}_right", *names], [name])
        model.graph.node.append(node)

    return fault


def swap_outputs(first: str, second: str) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        swapped = {first: second, second: first}
        for node in model.graph.node:
            node.input[:] = [swapped.get(name, name) for name in node.input]
            node.output[:] = [swapped.get(name, name) for name in node.output]

    return fault


def integer_timestep(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["whole_timestep" if name == "timestep" else name for name in node.input]
    int64, float32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    casts = [
        onnx.helper.make_node("Cast", ["timestep"], ["integer_timestep"], to=int64),
        onnx.helper.make_node("Cast", ["integer_timestep"], ["whole_timestep"], to=float32),
    ]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def failed(report: CandidateReport) -> list[Row]:
    return [row for row in report.rows if row.verdict == "failed"]


def failed_components(report: CandidateReport) -> set[ComponentName]:
    """Networks that failed on the reference's own inputs, where no error is inherited."""
    return {row.component for row in failed(report) if row.stage in ("component", "finiteness")}


# --- nothing wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_bundle_passes(checkpoint_bundle: Bundle, onnx_bundle: Bundle, seed: int) -> None:
    report = check_against(record_reference(checkpoint_bundle, seed=seed), onnx_bundle)

    assert report.verdict == "passed", failed(report)
    assert {row.component for row in report.rows if row.stage == "component"} == COMPONENTS
    for stage in ("teacher_forced", "free_running"):
        assert [row.step for row in report.rows if row.stage == stage] == [1, 2, 3]
    assert [row.component for row in report.rows if row.stage == "image"] == ["vae_decoder"]
    assert set(report.executions) == COMPONENTS


def test_the_reference_passes_against_itself(
    recording: Recording, checkpoint_bundle: Bundle
) -> None:
    candidate = Candidate(
        bundle=checkpoint_bundle,
        runtime=engine("pytorch"),
        precisions=dict.fromkeys(checkpoint_bundle.artifacts, "fp32"),
    )
    report = check(recording, candidate, report=lambda _: None).report
    assert report.verdict == "passed"
    assert {row.max_abs for row in report.rows if row.has_numbers} == {0}


def test_other_noise_does_not_pass(checkpoint_bundle: Bundle, recording: Recording) -> None:
    """The check itself can fail: a run from another seed is another run."""
    other = record_reference(checkpoint_bundle, seed=1)
    mixed = replace(recording, latents=other.latents, image=other.image)
    candidate = Candidate(
        bundle=checkpoint_bundle,
        runtime=engine("pytorch"),
        precisions=dict.fromkeys(checkpoint_bundle.artifacts, "fp32"),
    )
    report = check(mixed, candidate, report=lambda _: None).report
    assert {row.stage for row in failed(report)} == {"teacher_forced", "free_running", "image"}


# --- planted faults ------------------------------------------------------------------------------


def test_nan_in_a_weight(recording: Recording, onnx_folder: Path, tmp_path: Path) -> None:
    def change(values: Array) -> None:
        values.flat[0] = np.nan

    fault = change_weight("unet.conv_in.weight", change)
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", "unet", fault))

    assert report.verdict == "failed"
    assert failed_components(report) == {"unet"}
    named = [row for row in failed(report) if row.stage == "finiteness"]
    assert [(row.component, row.step) for row in named] == [
        ("unet", None),
        ("unet", 1),
        ("unet", 1),
    ]
    assert all("unet 'noise_pred'" in row.reason for row in named)
    measured = [row for row in report.rows if row.component == "unet" and row.has_numbers]
    assert measured == []


@pytest.mark.parametrize("weight", ["unet.conv_in.weight", "unet.time_embedding.linear_1.bias"])
def test_one_weight_off_by_a_hundredth(
    recording: Recording, onnx_folder: Path, tmp_path: Path, weight: str
) -> None:
    def change(values: Array) -> None:
        values.flat[1] += 1e-2

    fault = change_weight(weight, change)
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", "unet", fault))

    assert failed_components(report) == {"unet"}
    assert {row.stage for row in failed(report)} >= {"teacher_forced", "free_running"}
    for row in failed(report):
        assert row.rel_l2 is not None
        assert COMPONENT_REL_L2["fp32"] < row.rel_l2 < 1  # a small fault, and found


def test_pooled_embeddings_of_swapped_prompts(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    """Rows in reverse order: right for one prompt, wrong for several."""
    reverse = [np.array([value], np.int64) for value in (-1, -(2**62), 0, -1)]
    fault = after_output("text_embeds", "Slice", *reverse)
    report = check_against(
        recording, plant(onnx_folder, tmp_path / "bundle", "text_encoder_2", fault)
    )

    (row,) = failed(report)
    assert row.component == "text_encoder_2"
    assert row.case == "batch 3"
    assert row.tensor == "text_embeds"


def test_a_decoder_that_is_a_thousandth_too_bright(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    fault = after_output("sample", "Mul", np.array(1.001, np.float32))
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", "vae_decoder", fault))

    assert {row.component for row in failed(report)} == {"vae_decoder"}
    assert {row.stage for row in failed(report)} == {"component", "image"}
    for row in failed(report):
        assert row.rel_l2 == pytest.approx(1e-3, rel=0.05)


def test_the_last_hidden_state_instead_of_the_one_before(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    fault = swap_outputs("hidden_states.2", "hidden_states.3")
    report = check_against(
        recording, plant(onnx_folder, tmp_path / "bundle", "text_encoder", fault)
    )
    assert failed_components(report) == {"text_encoder"}
    assert "free_running" in {row.stage for row in failed(report)}
    assert "teacher_forced" not in {row.stage for row in failed(report)}  # the U-Net is right


def test_an_encoder_that_forgets_the_log_variance(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    """No run needs the VAE's encoder; only its own row can tell."""
    mask = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32).reshape(1, 8, 1, 1)
    fault = after_output("latent_parameters", "Mul", mask)
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", "vae_encoder", fault))
    assert {(row.stage, row.component) for row in failed(report)} == {("component", "vae_encoder")}


def test_an_integer_timestep_shows_only_between_the_integers(
    recording: Recording, checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    bundle = plant(onnx_folder, tmp_path / "bundle", "unet", integer_timestep)
    assert check_against(recording, bundle).verdict == "passed"  # SDXL's own spacing is whole

    reference = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    for folder in (reference, bundle.folder):
        path = folder / "scheduler" / "scheduler_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "timestep_spacing": "linspace"}), encoding="utf-8")
    between = record_reference(open_bundle(reference))
    assert between.preconditions["timesteps"] == [999, 499.5, 0]

    report = check_against(between, bundle)

    assert failed_components(report) == {"unet"}
    at_step = {row.case for row in failed(report) if row.stage in ("component", "teacher_forced")}
    assert at_step == {"t=499.5", "t=499.5 batch 2"}


# --- what is not there ---------------------------------------------------------------------------


def test_a_bundle_of_one_component_is_checked_as_far_as_it_goes(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    for component in COMPONENTS - {"unet"}:
        (folder / component / "model.onnx").unlink()

    report = check_against(recording, open_bundle(folder))

    assert report.verdict == "not_run"
    passed = {row.component for row in report.rows if row.verdict == "passed"}
    missing = [row for row in report.rows if row.verdict == "not_run"]
    assert passed == {"unet"}
    assert {row.component for row in missing if row.stage == "component"} == COMPONENTS - {"unet"}
    assert {row.stage for row in missing} == {
        "component",
        "teacher_forced",
        "free_running",
        "image",
    }
    assert all(row.reason and not row.has_numbers for row in missing)
    assert set(report.executions) == {"unet"}


def test_a_missing_vae_encoder_stops_no_run(recording: Recording, onnx_bundle: Bundle) -> None:
    artifacts: dict[ComponentName, Artifact] = {
        name: artifact for name, artifact in onnx_bundle.artifacts.items() if name != "vae_encoder"
    }
    report = check_against(recording, replace(onnx_bundle, artifacts=artifacts))
    missing = [row for row in report.rows if row.verdict != "passed"]
    assert [(row.stage, row.component) for row in missing] == [("component", "vae_encoder")]
    assert report.verdict == "not_run"


def test_limits_follow_the_declared_precision(recording: Recording, onnx_bundle: Bundle) -> None:
    candidate = Candidate(
        bundle=onnx_bundle,
        runtime=engine("onnxruntime"),
        precisions={**dict.fromkeys(onnx_bundle.artifacts, "fp32"), "unet": "fp16"},
    )
    report = check(recording, candidate, report=lambda _: None).report
    limits = {(row.stage, row.component): row.limit for row in report.rows}
    assert limits["component", "vae_decoder"] == 1e-5
    assert limits["component", "unet"] == 1e-2
    assert limits["teacher_forced", "unet"] == pytest.approx(6.4e-2, rel=1e-2)
    assert limits["free_running", "unet"] == 5e-2
    assert limits["image", "vae_decoder"] == 5e-2
