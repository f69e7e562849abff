import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import BundleError, UsageError
from triptych.exporters import make_exporter
from triptych.exporters import onnx as exporter_module
from triptych.exporters._onnx_trace import OPSET
from triptych.exporters.base import ExportSettings
from triptych.exporters.onnx import EXTERNAL_DATA_NAME
from triptych.models.checkpoint import open_checkpoint
from triptych.models.feeds import unet_feed
from triptych.models.sdxl import COMPONENTS
from triptych.parity.metrics import rel_l2
from triptych.runtimes import make_runtime
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.types import Array, ComponentName, Precision, TensorMap


def quiet(stage: str, fraction: float) -> None:
    assert stage
    assert 0 <= fraction <= 1


def export(
    checkpoint: Path, component: ComponentName, folder: Path, *, precision: Precision = "fp32"
) -> Path:
    folder.mkdir(parents=True)
    exporter = make_exporter("onnx", ExportSettings(precision=precision))
    exporter.export(open_checkpoint(checkpoint), component, folder, report=quiet)
    return folder / component / "model.onnx"


def run_file(path: Path, sound: Artifact, feed: TensorMap) -> dict[str, Array]:
    artifact = Artifact(spec=sound.spec, format="onnx", path=path, bindings=sound.bindings)
    with CheckedSession(make_runtime("onnxruntime").open(artifact), artifact) as session:
        return session.run(feed)


def run_component(bundle: Bundle, component: ComponentName, feed: TensorMap) -> dict[str, Array]:
    name = "pytorch" if bundle.format == "diffusers" else "onnxruntime"
    with open_session(make_runtime(name), bundle, component) as session:
        return session.run(feed)


# Settings


def test_a_precision_that_onnx_engines_lack_is_refused() -> None:
    with pytest.raises(UsageError, match="got precision 'bf16', want one of fp32, fp16, int8"):
        make_exporter("onnx", ExportSettings(precision="bf16"))


def test_an_unknown_format_is_told_which_there_are() -> None:
    with pytest.raises(UsageError, match=r"got 'tflite', want one of .*onnx"):
        make_exporter("tflite")


# Weights


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_weight_is_the_checkpoints_and_none_is_transposed_at_run_time(
    component: ComponentName, onnx_folder: Path, checkpoint: Path
) -> None:
    model = onnx.load(str(onnx_folder / component / "model.onnx"))
    stored = open_checkpoint(checkpoint).stored_tensors(component)
    (file,) = {tensor.file for tensor in stored.values()}
    values = load_file(file)
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    assert len(weights) == len(stored)
    num_transposed = 0
    for name, weight in weights.items():
        key = next(key for key in stored if name.endswith(key))
        expected = values[stored[key].key]
        as_stored = weight.shape == expected.shape and np.array_equal(weight, expected)
        assert as_stored or np.array_equal(weight, expected.T), name
        num_transposed += not as_stored
    assert num_transposed > 0
    read = {node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
    assert not read & weights.keys()


def transposing_graph(perm: list[int], *, num_readers: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["weight"], ["turned"], perm=perm),
        *(helper.make_node("Neg", ["weight"], [f"other{index}"]) for index in range(num_readers)),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    return helper.make_model(helper.make_graph(nodes, "graph", [value], []))


def test_a_transpose_of_a_weight_is_folded_into_it() -> None:
    model = transposing_graph([1, 0], num_readers=0)
    assert exporter_module._fold_transposes(model, {"weight"}) == {"weight"}
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert list(model.graph.node[0].input) == ["x", "weight"]


@pytest.mark.parametrize(
    ("perm", "num_readers", "weights"),
    [([1, 0], 1, {"weight"}), ([0, 1], 0, {"weight"}), ([1, 0], 0, {"another"})],
    ids=["two readers", "no transpose at all", "not a weight"],
)
def test_other_transposes_stay(perm: list[int], num_readers: int, weights: set[str]) -> None:
    model = transposing_graph(perm, num_readers=num_readers)
    before = model.SerializeToString()
    assert exporter_module._fold_transposes(model, weights) == set()
    assert model.SerializeToString() == before


# External data


@pytest.fixture(scope="module")
def external(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder whose weights lie beside the graph. Read only: copy it."""
    folder = tmp_path_factory.mktemp("external") / "text_encoder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter_module, "EXTERNAL_DATA_BYTES", 1000)
        return export(checkpoint, "text_encoder", folder).parent


def test_large_weights_lie_beside_the_graph_at_pages(external: Path) -> None:
    assert {path.name for path in external.iterdir()} == {"model.onnx", EXTERNAL_DATA_NAME}
    model = onnx.load(str(external / "model.onnx"), load_external_data=False)
    outside = {
        weight.name: {entry.key: entry.value for entry in weight.external_data}
        for weight in model.graph.initializer
        if weight.external_data
    }
    inside = [weight for weight in model.graph.initializer if not weight.external_data]
    assert len(outside) > 10
    assert all(len(weight.raw_data) < 1024 for weight in inside)
    assert {entries["location"] for entries in outside.values()} == {EXTERNAL_DATA_NAME}
    assert all(int(entries["offset"]) % 4096 == 0 for entries in outside.values())
    ends = [int(entries["offset"]) + int(entries["length"]) for entries in outside.values()]
    assert max(ends) == (external / EXTERNAL_DATA_NAME).stat().st_size


def test_external_weights_give_the_same_outputs_and_facts(
    external: Path, onnx_bundle: Bundle
) -> None:
    inline = onnx_bundle.artifact("text_encoder")
    feed = {"input_ids": np.arange(154, dtype=np.int64).reshape(2, 77)}
    actual = run_file(external / "model.onnx", inline, feed)
    expected = run_component(onnx_bundle, "text_encoder", feed)
    assert np.array_equal(actual["hidden_states"], expected["hidden_states"])
    exporter = make_exporter("onnx")
    assert exporter.describe(external / "model.onnx") == exporter.describe(inline.path)


@pytest.mark.parametrize("keep", [None, 0, -1])
def test_external_data_that_is_not_whole_is_refused(
    keep: int | None, external: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(external, tmp_path / "copied")
    data = copied / EXTERNAL_DATA_NAME
    content = data.read_bytes()
    if keep is None:
        data.unlink()
    else:
        data.write_bytes(content[:keep])
    problem = "no such file" if keep is None else f"{len(content[:keep])} bytes"
    with pytest.raises(BundleError, match=f"{EXTERNAL_DATA_NAME}: got {problem}, want at least"):
        make_exporter("onnx").describe(copied / "model.onnx")


# Describing


def test_the_graph_declares_its_opset_and_its_axes(onnx_folder: Path) -> None:
    facts = make_exporter("onnx").describe(onnx_folder / "unet" / "model.onnx")
    assert facts.opset == OPSET == 18
    ports = {port.name: port for port in (*facts.inputs, *facts.outputs)}
    assert ports["sample"].shape == ("batch_size", 4, "height", "width")
    assert ports["out_sample"].shape == ("batch_size", 4, "height", "width")
    assert ports["timestep"].shape == ()
    assert ports["time_ids"].shape == ("batch_size", 6)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x00" * 64], ids=["empty", "text", "0"])
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx: got"):
        make_exporter("onnx").describe(path)


def test_an_absent_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.onnx"):
        make_exporter("onnx").describe(tmp_path / "absent.onnx")


def test_a_file_cut_exactly_between_two_fields_is_refused(
    onnx_folder: Path, tmp_path: Path
) -> None:
    content = (onnx_folder / "text_encoder" / "model.onnx").read_bytes()
    model = onnx.load_model_from_string(content)
    del model.opset_import[:]
    whole_fields = model.SerializeToString()
    assert content.startswith(whole_fields)  # so this cut is one that protobuf does not notice
    path = tmp_path / "model.onnx"
    path.write_bytes(whole_fields)
    with pytest.raises(BundleError, match="want a whole ONNX graph"):
        make_exporter("onnx").describe(path)


# Dynamic axes


@pytest.fixture(scope="module")
def sides(
    onnx_bundle: Bundle, checkpoint_bundle: Bundle
) -> Iterator[Mapping[ComponentName, tuple[CheckedSession, CheckedSession]]]:
    """Every component, exported and in PyTorch."""
    with ExitStack() as stack:
        yield {
            component: (
                stack.enter_context(
                    open_session(make_runtime("onnxruntime"), onnx_bundle, component)
                ),
                stack.enter_context(
                    open_session(make_runtime("pytorch"), checkpoint_bundle, component)
                ),
            )
            for component in COMPONENTS
        }


Sides = Mapping[ComponentName, tuple[CheckedSession, CheckedSession]]


def assert_same(sides: Sides, component: ComponentName, feed: TensorMap) -> None:
    exported, reference = sides[component]
    actual, expected = exported.run(feed), reference.run(feed)
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        assert rel_l2(actual[name], value) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 7, 12), (3, 17, 5)])
def test_the_unet_takes_any_size(
    batch: int, height: int, width: int, sides: Sides, onnx_bundle: Bundle
) -> None:
    random = np.random.default_rng(batch)
    feed = unet_feed(onnx_bundle.config, batch=batch, height=height, width=width, random=random)
    assert_same(sides, "unet", feed)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_text_encoders_take_any_batch(component: ComponentName, batch: int, sides: Sides) -> None:
    ids = np.random.default_rng(batch).integers(0, 800, (batch, 77))
    assert_same(sides, component, {"input_ids": ids})


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 3, 7), (2, 6, 2), (3, 1, 1)])
def test_the_vae_takes_any_size(batch: int, height: int, width: int, sides: Sides) -> None:
    random = np.random.default_rng(batch)
    latents = random.standard_normal((batch, 4, height, width)).astype(np.float32)
    image = random.uniform(-1, 1, (batch, 3, 8 * height, 8 * width)).astype(np.float32)
    assert_same(sides, "vae_encoder", {"image": image})
    assert_same(sides, "vae_decoder", {"latents": latents})


# Half precision


@pytest.fixture(scope="module")
def half_unet(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp16") / "unet"
    return export(checkpoint, "unet", folder, precision="fp16")


@pytest.fixture(scope="module")
def half_text_encoder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp16") / "text_encoder_2"
    return export(checkpoint, "text_encoder_2", folder, precision="fp16")


def test_every_port_of_an_fp16_graph_is_float32(half_unet: Path, half_text_encoder: Path) -> None:
    for path in (half_unet, half_text_encoder):
        facts = make_exporter("onnx").describe(path)
        assert set(facts.weight_dtypes) == {"float16"}
        dtypes = {port.name: port.dtype for port in (*facts.inputs, *facts.outputs)}
        dtypes.pop("input_ids", None)
        assert set(dtypes.values()) == {"float32"}


def time_feed(bundle: Bundle, timestep: float) -> dict[str, Array]:
    """A U-Net feed with the time_ids of a large photograph, which half precision rounds."""
    feed = unet_feed(bundle.config, batch=1, height=8, width=8, random=np.random.default_rng(0))
    ids = np.array([[4096, 4001, 8, 24, 1000, 1024]], np.float32)
    return {**feed, "timestep": np.array(timestep, np.float32), "time_ids": ids}


def error_at(path: Path, onnx_bundle: Bundle, timestep: float) -> float:
    feed = time_feed(onnx_bundle, timestep)
    expected = run_component(onnx_bundle, "unet", feed)["noise_pred"]
    return rel_l2(run_file(path, onnx_bundle.artifact("unet"), feed)["noise_pred"], expected)


def round_frequencies(path: Path, rounded: Path) -> None:
    """Round the sinusoids' frequencies, 1 down to 1/10000, to half precision."""
    model = onnx.load(str(path))
    num_tables = 0
    for node in model.graph.node:
        if node.op_type != "Constant":
            continue
        value = numpy_helper.to_array(node.attribute[0].t)
        steps = value.ravel()
        expected = np.exp(-np.log(10_000) * np.arange(steps.size) / max(steps.size, 1))
        if steps.size > 1 and np.allclose(steps, expected, rtol=1e-5):
            assert value.dtype == np.float32
            halved = value.astype(np.float16).astype(np.float32)
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(halved))
            num_tables += 1
    assert num_tables == 2  # of timestep and of time_ids
    onnx.save(model, str(rounded))


@pytest.mark.slow
def test_an_fp16_unet_keeps_its_sinusoids_in_fp32(
    half_unet: Path, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    first, last = (error_at(half_unet, onnx_bundle, timestep) for timestep in (999.0, 1.0))
    fractional = error_at(half_unet, onnx_bundle, 951.3)
    assert 0 < first < 3 * last
    assert fractional < 3 * last
    assert first < 1e-2
    # The same measure sees frequencies that were rounded to half precision.
    rounded = tmp_path / "model.onnx"
    round_frequencies(half_unet, rounded)
    assert error_at(rounded, onnx_bundle, 999.0) > 3 * last, (first, last)
