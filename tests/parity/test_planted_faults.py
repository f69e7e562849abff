"""Planted faults: each must be found by the stage that is about it, under its name.

Most are defects that some tool has had.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from triptych.bundle.bundle import Bundle, open_bundle
from triptych.errors import IncomparableError, TensorMismatchError
from triptych.exporters.base import ExportSettings
from triptych.parity.candidate import Candidate
from triptych.parity.check import check
from triptych.parity.check_options import CheckOptions, Limits
from triptych.parity.floors import floor_table
from triptych.parity.limits import COMPONENT_REL_L2
from triptych.parity.record import default_settings, record
from triptych.parity.recording import Recording
from triptych.parity.report import CandidateReport, Row, Stage
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.openvino import OpenVino
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.samplers import Sampler
from triptych.sampling.schedulers import SchedulerChoice, read_sampler
from triptych.testing.spoilt import Spoil, SpoiltRuntime
from triptych.types import (
    Array,
    ComponentName,
    Latents,
    NoisePred,
    Precision,
    TensorMap,
)
from triptych.workflows.check_candidates import find_candidates
from triptych.workflows.export import ExportRequest, export_bundles
from triptych.workflows.record import with_floors

pytestmark = pytest.mark.slow

STEPS = 3
ONE_THREAD = RuntimeSettings(num_threads=1)
Fault = Callable[[onnx.ModelProto], None]
Found = tuple[Stage, ComponentName]


def engine(name: str) -> Runtime:
    """One thread: on networks this small, several only wait for each other."""
    return make_runtime(name, ONE_THREAD)


@pytest.fixture(scope="session")
def recording(checkpoint_bundle: Bundle) -> Recording:
    """Not square, and two prompts: what is swapped shows."""
    settings = replace(
        default_settings(checkpoint_bundle.config, num_inference_steps=STEPS),
        prompts=Prompts(prompt=("a red cat",), prompt_2=("oil painting of a fox",)),
        height_px=64,
        width_px=72,
    )
    return record(checkpoint_bundle, engine("pytorch"), settings, report=lambda _: None)


def check_against(
    recording: Recording,
    bundle: Bundle,
    *,
    runtime: Runtime | None = None,
    make_sampler: Callable[..., Sampler] = read_sampler,
) -> CandidateReport:
    candidate = Candidate(
        bundle=bundle,
        runtime=runtime or engine("onnxruntime"),
        precisions=dict.fromkeys(bundle.artifacts, "fp32"),
        make_sampler=make_sampler,
    )
    return check(recording, candidate, report=lambda _: None).report


def record_default(bundle: Bundle) -> Recording:
    settings = default_settings(bundle.config, num_inference_steps=STEPS)
    return record(bundle, engine("pytorch"), settings, report=lambda _: None)


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def failed(report: CandidateReport) -> list[Row]:
    return [row for row in report.rows if row.verdict == "failed"]


def first_failed(report: CandidateReport) -> set[Found]:
    """What the earliest stage that failed says is wrong: rows are in the order of the stages."""
    rows = failed(report)
    return {(row.stage, row.component) for row in rows if row.stage == rows[0].stage}


def causes(report: CandidateReport) -> str:
    return "; ".join(hint.cause for hint in report.hints)


# --- in the graph --------------------------------------------------------------------------------


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


def constant(model: onnx.ModelProto, name: str, value: Array | float) -> str:
    array = np.asarray(value, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return name


def tanh_gelu(model: onnx.ModelProto) -> None:
    """erf(u) by its tanh approximation, as FastGelu: u = x / sqrt(2)."""
    nodes = []
    linear = constant(model, "gelu_linear", 2 / np.sqrt(np.pi))
    cubic = constant(model, "gelu_cubic", np.sqrt(2 / np.pi) * 0.044715 * 2 * np.sqrt(2))
    make = onnx.helper.make_node
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Erf":
            nodes.append(node)
            continue
        u, name = node.input[0], f"gelu_{number}"
        nodes += [
            make("Mul", [u, u], [f"{name}_2"]),
            make("Mul", [f"{name}_2", cubic], [f"{name}_c"]),
            make("Add", [f"{name}_c", linear], [f"{name}_f"]),
            make("Mul", [f"{name}_f", u], [f"{name}_t"]),
            make("Tanh", [f"{name}_t"], [node.output[0]]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def no_causal_mask(model: onnx.ModelProto) -> None:
    """Attention that sees later tokens."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            masked = made_by[node.input[0]]
            assert masked.op_type == "Add"
            (scores,) = [name for name in masked.input if made_by[name].op_type != "Expand"]
            node.input[0] = scores


def pooled_at_the_first_token(model: onnx.ModelProto) -> None:
    (pooling,) = [node for node in model.graph.node if node.op_type == "ArgMax"]
    name = pooling.output[0]
    pooling.output[0] = "last_token"
    zero = onnx.numpy_helper.from_array(np.array(0, np.int64), "token_zero")
    model.graph.initializer.append(zero)
    where = [index for index, node in enumerate(model.graph.node) if node is pooling]
    nodes = list(model.graph.node)
    position = nodes.index(pooling) if not where else where[0]
    nodes.insert(position + 1, onnx.helper.make_node("Mul", ["last_token", "token_zero"], [name]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def wider_epsilon(operator: str) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == operator:
                (epsilon,) = [one for one in node.attribute if one.name == "epsilon"]
                epsilon.f = 1e-2

    return fault


def wider_epsilon_by_rows(model: onnx.ModelProto) -> None:
    """Of group norms that are added up by rows, as the VAE's are."""
    epsilons = [node for node in model.graph.node if node.output[0].endswith("/epsilon")]
    assert epsilons
    for node in epsilons:
        value = onnx.numpy_helper.from_array(np.array(1e-2, np.float32))
        node.attribute[0].t.CopyFrom(value)


def unscaled_attention(model: onnx.ModelProto) -> None:
    """One attention without its 1 / sqrt(width)."""
    scores = next(node for node in model.graph.node if node.op_type == "Softmax").input[0]
    four = constant(model, "unscaled", 2.0)
    nodes = list(model.graph.node)
    for index, node in enumerate(nodes):
        if node.op_type == "Softmax" and node.input[0] == scores:
            node.input[0] = "unscaled_scores"
            nodes.insert(index, onnx.helper.make_node("Mul", [scores, four], ["unscaled_scores"]))
            break
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def change_all_weights(change: Callable[[Array], Array]) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        for weight in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weight)
            if values.dtype == np.float32 and values.ndim > 1:
                changed = change(values).astype(np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))

    return fault


def as_tf32(values: Array) -> Array:
    """10 bits of mantissa."""
    bits = values.view(np.uint32) + np.uint32(0x1000)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def set_first(value: float) -> Callable[[Array], None]:
    def change(values: Array) -> None:
        values.flat[0] = value

    return change


HALF_BRIGHT = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32).reshape(1, 8, 1, 1)
REVERSED = [np.array([value], np.int64) for value in (-1, -(2**62), 0, -1)]


@pytest.mark.parametrize(
    ("component", "fault", "found"),
    [
        pytest.param(
            "unet",
            change_weight("unet.conv_in.weight", set_first(np.nan)),
            ("finiteness", "unet"),
            id="NaN weight",
        ),
        pytest.param(
            "vae_decoder",
            after_output("sample", "Mul", np.array(3e38, np.float32)),
            ("finiteness", "vae_decoder"),
            id="overflow in the decoder",
        ),
        pytest.param("unet", tanh_gelu, ("component", "unet"), id="tanh GELU in the U-Net"),
        pytest.param(
            "text_encoder_2", tanh_gelu, ("component", "text_encoder_2"), id="tanh GELU in CLIP"
        ),
        pytest.param(
            "text_encoder", no_causal_mask, ("component", "text_encoder"), id="no causal mask"
        ),
        pytest.param(
            "text_encoder_2",
            pooled_at_the_first_token,
            ("component", "text_encoder_2"),
            id="pooled at another token",
        ),
        pytest.param(
            "unet",
            wider_epsilon("InstanceNormalization"),
            ("component", "unet"),
            id="epsilon of the group norms",
        ),
        pytest.param(
            "vae_encoder",
            wider_epsilon_by_rows,
            ("component", "vae_encoder"),
            id="epsilon in the encoder, which no run needs",
        ),
        pytest.param("unet", unscaled_attention, ("component", "unet"), id="unscaled attention"),
        pytest.param(
            "unet", change_all_weights(as_tf32), ("component", "unet"), id="TF32 called fp32"
        ),
        pytest.param(
            "unet",
            change_all_weights(lambda values: values * 1.001),
            ("component", "unet"),
            id="another fine-tune",
        ),
        pytest.param(
            "vae_encoder",
            after_output("latent_parameters", "Mul", HALF_BRIGHT),
            ("component", "vae_encoder"),
            id="no log-variance",
        ),
        pytest.param(
            "text_encoder_2",
            after_output("text_embeds", "Slice", *REVERSED),
            ("component", "text_encoder_2"),
            id="pooled embeddings of swapped prompts",
        ),
        pytest.param(
            "text_encoder",
            swap_outputs("hidden_states.2", "hidden_states.3"),
            ("component", "text_encoder"),
            id="the last hidden state",
        ),
    ],
)
def test_a_fault_in_a_graph(
    recording: Recording,
    onnx_folder: Path,
    tmp_path: Path,
    component: ComponentName,
    fault: Fault,
    found: Found,
) -> None:
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", component, fault))
    assert report.verdict == "failed"
    assert first_failed(report) == {found}


def test_pooled_and_hidden_states_by_each_others_names(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    """They differ in rank: the border refuses them, by name, before they are compared."""
    fault = swap_outputs("text_embeds", "hidden_states.3")
    bundle = plant(onnx_folder, tmp_path / "bundle", "text_encoder_2", fault)
    with pytest.raises(TensorMismatchError, match=r"text_encoder_2 'hidden_states\.3': got"):
        check_against(recording, bundle)


def test_one_weight_off_by_a_hundredth_is_small_and_found(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    def change(values: Array) -> None:
        values.flat[1] += 1e-2

    fault = change_weight("unet.conv_in.weight", change)
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", "unet", fault))

    assert first_failed(report) == {("component", "unet")}
    assert {row.stage for row in failed(report)} >= {"teacher_forced", "free_running"}
    for row in failed(report):
        assert row.rel_l2 is not None
        assert COMPONENT_REL_L2["fp32"] < row.rel_l2 < 1


def test_a_decoder_that_is_a_thousandth_too_bright(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    fault = after_output("sample", "Mul", np.array(1.001, np.float32))
    report = check_against(recording, plant(onnx_folder, tmp_path / "bundle", "vae_decoder", fault))

    assert {(row.stage, row.component) for row in failed(report)} == {
        ("component", "vae_decoder"),
        ("image", "vae_decoder"),
    }
    for row in failed(report):
        assert row.rel_l2 == pytest.approx(1e-3, rel=0.05)
    assert "multiplied by a constant" in causes(report)


def test_an_integer_timestep_shows_only_between_the_integers(
    checkpoint: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    bundle = plant(onnx_folder, tmp_path / "bundle", "unet", integer_timestep)
    whole = record_default(open_bundle(checkpoint))
    assert check_against(whole, bundle).verdict == "passed"  # SDXL's own spacing is whole

    reference = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    for folder in (reference, bundle.folder):
        edit(folder / "scheduler" / "scheduler_config.json", timestep_spacing="linspace")
    between = record_default(open_bundle(reference))
    assert between.preconditions["timesteps"] == [999, 499.5, 0]

    report = check_against(between, bundle)

    assert first_failed(report) == {("component", "unet")}
    at_step = {row.case for row in failed(report) if row.stage in ("component", "teacher_forced")}
    assert at_step == {"t=499.5", "t=499.5 batch 2"}


# --- between the graph and the sampler -----------------------------------------------------------


def every(change: Callable[[Array], Array]) -> Spoil:
    return lambda _, outputs: {name: change(value) for name, value in outputs.items()}


def outlier(values: Array) -> Array:
    spoilt = values.copy()
    spoilt.flat[spoilt.size // 3] = 1e4
    return spoilt


def swapped_halves(values: Array) -> Array:
    return np.concatenate(np.split(values, 2)[::-1]) if len(values) == 2 else values


def stale() -> Spoil:
    """A buffer that is handed out before it is written: each run gives the one before."""
    kept: list[dict[str, Array]] = []

    def spoil(_: TensorMap, outputs: dict[str, Array]) -> dict[str, Array]:
        kept.append(outputs)
        before = kept[-2] if len(kept) > 1 else outputs
        same = all(before[name].shape == value.shape for name, value in outputs.items())
        return before if same else outputs

    return spoil


def random_latents() -> Spoil:
    """A VAE encoder that draws from its posterior inside the graph."""
    random = np.random.default_rng(0)
    return every(lambda values: values + 0.1 * random.standard_normal(values.shape, np.float32))


@pytest.mark.parametrize(
    ("component", "spoil", "found", "cause"),
    [
        pytest.param(
            "vae_decoder", every(outlier), "component", "", id="one outlier of 1e4 in thousands"
        ),
        pytest.param(
            "unet",
            every(lambda values: values[:, [1, 0, 2, 3]]),
            "component",
            "another tensor",
            id="permuted channels",
        ),
        pytest.param(
            "unet", every(swapped_halves), "component", "", id="swapped halves of guidance"
        ),
        pytest.param(
            "vae_decoder",
            every(np.zeros_like),
            "component",
            "overflows",
            id="black pictures",
        ),
        pytest.param("unet", stale(), "component", "", id="a stale buffer"),
        pytest.param(
            "vae_encoder", random_latents(), "component", "", id="a posterior drawn in the graph"
        ),
        pytest.param(
            "text_encoder",
            every(lambda values: np.flip(values, axis=1).copy()),
            "component",
            "",
            id="tokens in reverse",
        ),
    ],
)
def test_a_fault_at_an_engine_s_border(
    recording: Recording,
    onnx_bundle: Bundle,
    component: ComponentName,
    spoil: Spoil,
    found: Stage,
    cause: str,
) -> None:
    spoilt = SpoiltRuntime(runtime=engine("onnxruntime"), component=component, spoil=spoil)
    report = check_against(recording, onnx_bundle, runtime=spoilt)
    assert report.verdict == "failed"
    assert first_failed(report) == {(found, component)}
    assert cause in causes(report)


def test_an_engine_that_does_not_repeat_itself_is_not_excused_by_it(
    recording: Recording, onnx_bundle: Bundle
) -> None:
    spoilt = SpoiltRuntime(
        runtime=engine("onnxruntime"), component="vae_encoder", spoil=random_latents()
    )
    report = check_against(recording, onnx_bundle, runtime=spoilt)
    assert report.self_difference["vae_encoder"] > 1e-2
    assert report.self_difference["unet"] == 0
    (row,) = [row for row in failed(report) if row.case == "two runs of one feed"]
    assert row.component == "vae_encoder"


# --- in the sampler ------------------------------------------------------------------------------


def unscaled_noise(noise: Latents, _: object) -> Latents:
    return noise


def wrong_guidance(
    unconditional: NoisePred, conditional: NoisePred, *, guidance_scale: float
) -> NoisePred:
    """From the conditional side on, as some write it: one more than was asked for."""
    guided: NoisePred = conditional + np.float32(guidance_scale) * (conditional - unconditional)
    return guided


def undivided_latents(latents: Latents, _: object) -> Latents:
    return latents


@pytest.mark.parametrize(
    ("place", "wrong", "found"),
    [
        pytest.param(
            "triptych.sampling.guidance.classifier_free_guidance",
            wrong_guidance,
            ("teacher_forced", "unet"),
            id="guidance from the other side",
        ),
        pytest.param(
            "triptych.sampling.decode.unscale_latents",
            undivided_latents,
            ("image", "vae_decoder"),
            id="latents not divided by the scaling factor",
        ),
        pytest.param(
            "triptych.sampling.loop.unet_sample",
            lambda latents, *_: latents,
            ("free_running", "unet"),
            id="latents not scaled for the U-Net",
        ),
    ],
)
def test_a_fault_in_the_sampler(
    recording: Recording,
    onnx_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    wrong: Callable[..., Array],
    found: Found,
) -> None:
    monkeypatch.setattr(place, wrong)
    report = check_against(recording, onnx_bundle)
    assert first_failed(report) == {found}
    if found[0] == "free_running":
        assert "the run is wrong and not the networks" in causes(report)
        assert report.first_divergent_step == 1


# --- what cannot be compared ---------------------------------------------------------------------


def width_first(
    _: object, picture_size: tuple[int, int], *__: object, **___: object
) -> tuple[Array, Array]:
    """time_ids as GenAI has them."""
    height, width = picture_size
    ids = np.array([[width, height, 0, 0, width, height]], np.float32)
    return ids, ids


def betas_without_their_end(
    config_path: Path, choice: SchedulerChoice, *, num_inference_steps: int
) -> Sampler:
    """linspace(endpoint=False), as GenAI's Euler has it: sigma_max 14.565 for 14.615."""
    content = json.loads(config_path.read_text(encoding="utf-8"))
    start, end = content["beta_start"] ** 0.5, content["beta_end"] ** 0.5
    betas = np.linspace(start, end, content["num_train_timesteps"], endpoint=False) ** 2
    right = read_sampler(config_path, choice, num_inference_steps=num_inference_steps)
    alphas = np.cumprod(1 - betas)
    sigmas = ((1 - alphas) / alphas) ** 0.5
    at = right.schedule.timesteps.astype(int)
    schedule = replace(
        right.schedule, sigmas=np.append(sigmas[at], 0.0).astype(right.schedule.sigmas.dtype)
    )
    return replace(right, schedule=schedule)


@pytest.mark.parametrize(
    ("place", "wrong", "named"),
    [
        pytest.param(
            "triptych.sampling.start._pure",
            unscaled_noise,
            "first_latents_sha256",
            id="noise not scaled to the first level",
        ),
        pytest.param(
            "triptych.sampling.conditioning.both_time_ids",
            width_first,
            r"time_ids .* \(first at element 0: 72\.0 and 64\.0\)",
            id="width before height",
        ),
    ],
)
def test_a_run_that_starts_otherwise_is_not_compared(
    recording: Recording,
    onnx_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    wrong: Callable[..., object],
    named: str,
) -> None:
    monkeypatch.setattr(place, wrong)
    with pytest.raises(IncomparableError, match=named) as caught:
        check_against(recording, onnx_bundle)
    assert len(caught.value.differences) == 1


def test_prompts_for_the_other_encoder_are_not_compared(
    recording: Recording, onnx_bundle: Bundle
) -> None:
    prompts = Prompts(prompt=("oil painting of a fox",), prompt_2=("a red cat",))
    swapped = replace(recording, settings=replace(recording.settings, prompts=prompts))
    with pytest.raises(IncomparableError) as caught:
        check_against(swapped, onnx_bundle)
    names = [difference.split()[0] for difference in caught.value.differences]
    assert names == ["token_ids.text_encoder", "token_ids.text_encoder_2"]


def test_betas_without_their_end_point_are_not_compared(
    recording: Recording, onnx_bundle: Bundle
) -> None:
    with pytest.raises(IncomparableError) as caught:
        check_against(recording, onnx_bundle, make_sampler=betas_without_their_end)
    assert [difference.split()[0] for difference in caught.value.differences] == ["sigmas"]


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        (
            "scheduler/scheduler_config.json",
            {"timestep_spacing": "trailing"},
            'scheduler_config.timestep_spacing "trailing" and "leading"',
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            'scheduler_config.prediction_type "v_prediction" and "epsilon"',
        ),
        (
            "vae_decoder/config.json",
            {"scaling_factor": 0.18215},
            "model.scaling_factor 0.18215 and 0.13025",
        ),
        (
            "model_index.json",
            {"force_zeros_for_empty_prompt": False},
            "model.force_zeros_for_empty_prompt false and true",
        ),
    ],
)
def test_a_stale_reference_is_not_compared(
    recording: Recording,
    onnx_folder: Path,
    tmp_path: Path,
    file: str,
    changes: dict[str, object],
    named: str,
) -> None:
    """As a golden that was recorded before a config changed."""
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    edit(folder / file, **changes)
    with pytest.raises(IncomparableError) as caught:
        check_against(recording, open_bundle(folder))
    assert named in caught.value.differences


def test_a_tokenizer_that_pads_with_another_token(
    recording: Recording, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(onnx_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(folder / "tokenizer" / file, folder / "tokenizer_2" / file)
    with pytest.raises(IncomparableError) as caught:
        check_against(recording, open_bundle(folder))
    (difference,) = caught.value.differences
    assert difference.startswith("token_ids.text_encoder_2 ")


# --- precision -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def with_every_floor(recording: Recording, checkpoint_bundle: Bundle) -> Recording:
    return with_floors(
        recording,
        checkpoint_bundle,
        ONE_THREAD,
        ["fp16", "bf16", "fp16_weights"],
        report=lambda _: None,
    )


def check_as(
    recording: Recording, bundle: Bundle, precision: Precision, runtime: Runtime
) -> CandidateReport:
    candidate = Candidate(
        bundle=bundle, runtime=runtime, precisions=dict.fromkeys(bundle.artifacts, precision)
    )
    limits = Limits(floors=floor_table(recording.floors))
    return check(
        recording, candidate, options=CheckOptions(limits=limits), report=lambda _: None
    ).report


@pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    reason="OpenVINO computes in float32 by default on this CPU, which has no bf16",
)
def test_openvino_s_own_default_is_found_by_the_audit(
    recording: Recording, openvino_bundle: Bundle
) -> None:
    unforced = OpenVino(settings=ONE_THREAD, force_precision=False)
    report = check_against(recording, openvino_bundle, runtime=unforced)
    assert {row.stage for row in failed(report)} > {"precision"}
    first = failed(report)[0]
    assert (first.stage, first.case) == ("precision", "declared fp32, ran bf16")
    assert "the engine computed in another precision" in causes(report)


def test_int8_that_the_manifest_calls_fp16_is_found_by_the_audit(
    checkpoint: Path, tmp_path: Path
) -> None:
    request = ExportRequest(
        checkpoint=checkpoint,
        output=tmp_path,
        formats=["openvino"],
        components=["text_encoder"],
        settings=ExportSettings(precision="int8"),
        num_jobs=1,
        measure_steps=0,
    )
    folder = export_bundles(request)["openvino"]
    manifest = json.loads((folder / "triptych.json").read_text(encoding="utf-8"))
    (part,) = manifest["components"]
    edit(folder / "triptych.json", components=[{**part, "precision": "fp16"}])
    (candidate,) = find_candidates(folder, [], ONE_THREAD)
    recorded = record_default(open_bundle(checkpoint))

    report = check(recorded, candidate, report=lambda _: None).report

    first = failed(report)[0]
    assert (first.stage, first.component) == ("precision", "text_encoder")
    assert first.case == "weights declared fp16, stored int8"
    assert "other weights than its manifest says" in causes(report)


def test_a_sinusoid_in_fp16_is_found_by_the_floor_and_not_by_the_constant(
    with_every_floor: Recording, openvino_folder: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    """What OpenVINO's save_model does unasked: all constants in fp16, the sinusoid's too."""
    folder = shutil.copytree(openvino_folder, tmp_path / "bundle")
    (folder / "triptych.json").unlink()
    graph = openvino.Core().read_model(onnx_folder / "unet" / "model.onnx")
    openvino.save_model(graph, folder / "unet" / "openvino_model.xml")

    report = check_as(with_every_floor, open_bundle(folder), "fp16", engine("openvino"))

    assert ("component", "unet") in first_failed(report)
    rows = [row for row in failed(report) if row.stage == "component" and row.component == "unet"]
    assert all(row.ratio is not None and row.ratio > 2 for row in rows)
    for row in rows:
        assert row.rel_l2 is not None
        assert row.rel_l2 < COMPONENT_REL_L2["fp16"]  # which would have let it pass
    assert "sinusoid is rounded" in causes(report)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_pytorch_itself_in_a_lower_precision_keeps_its_own_floor(
    with_every_floor: Recording, checkpoint_bundle: Bundle, precision: Precision
) -> None:
    runtime = make_runtime("pytorch", replace(ONE_THREAD, precision=precision))
    report = check_as(with_every_floor, checkpoint_bundle, precision, runtime)
    assert report.verdict == "passed"
    ratios = {row.ratio for row in report.rows if row.ratio is not None}
    assert all(ratio <= 1 for ratio in ratios)
    assert 1 in ratios
