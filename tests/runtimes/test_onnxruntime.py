import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.bundle.layouts import MANIFEST_NAME, Binding, Bindings
from triptych.errors import (
    BackendError,
    BundleError,
    MissingDependencyError,
    NonFiniteError,
    TensorMismatchError,
    UsageError,
)
from triptych.models.component import ComponentSpec
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.runtimes.onnxruntime import OnnxRuntime
from triptych.tensors import TensorSpec


def engine(**settings: object) -> Runtime:
    return make_runtime("onnxruntime", RuntimeSettings(**settings))  # type: ignore[arg-type]


def save_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    sample: int = TensorProto.FLOAT,
    timestep: int = TensorProto.FLOAT,
    timestep_shape: list[int] | None = None,
    output: int = TensorProto.FLOAT,
) -> Artifact:
    """A foreign "U-Net" of a few nodes from `sample` [batch, 4] and `timestep` to `y`."""
    inputs = [
        helper.make_tensor_value_info("sample", sample, ["batch", 4]),
        helper.make_tensor_value_info("timestep", timestep, timestep_shape or []),
    ]
    outputs = [helper.make_tensor_value_info("y", output, ["batch", 4])]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    spec = ComponentSpec(
        name="unet",
        inputs=(
            TensorSpec(name="sample", dtype="float32", shape=("batch", 4)),
            TensorSpec(name="timestep", dtype="float32", shape=()),
        ),
        outputs=(TensorSpec(name="noise_pred", dtype="float32", shape=("batch", 4)),),
    )
    bindings = Bindings(
        inputs=tuple(Binding(name=name, artifact_name=name) for name in ("sample", "timestep")),
        outputs=(Binding(name="noise_pred", artifact_name="y"),),
    )
    return Artifact(spec=spec, format="onnx", path=path, bindings=bindings)


def run(artifact: Artifact, sample: np.ndarray, timestep: float) -> np.ndarray:
    feed = {"sample": sample, "timestep": np.array(timestep, np.float32)}
    with CheckedSession(engine().open(artifact), artifact) as session:
        return session.run(feed)["noise_pred"]


SAMPLE = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)


# Providers and settings


def test_an_absent_provider_is_an_error_that_lists_those_present(onnx_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="no execution provider 'NoSuchProvider'") as caught:
        engine(device="NoSuchProvider").open(onnx_bundle.artifact("text_encoder"))
    assert all(name in str(caught.value) for name in onnxruntime.get_available_providers())


def test_the_execution_says_what_runs(onnx_bundle: Bundle) -> None:
    with open_session(engine(num_threads=1), onnx_bundle, "text_encoder") as session:
        execution = session.execution
    assert execution.runtime == "onnxruntime"
    assert execution.version == onnxruntime.__version__
    assert execution.device == "CPUExecutionProvider"
    assert execution.precision == "fp32"
    assert execution.details["threads"] == "1"


def test_a_graphs_own_precision_may_be_asked_for(onnx_bundle: Bundle) -> None:
    with open_session(engine(precision="fp32"), onnx_bundle, "text_encoder") as session:
        assert session.execution.precision == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_another_precision_than_the_graphs_is_refused(precision: str, onnx_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=rf"--precision {precision}.*exported in: fp32"):
        engine(precision=precision).open(onnx_bundle.artifact("text_encoder"))


def test_a_foreign_graph_claims_no_precision(tmp_path: Path) -> None:
    artifact = save_graph(tmp_path / "model.onnx", [helper.make_node("Neg", ["sample"], ["y"])])
    session = engine().open(artifact)
    assert session.execution.precision == "as the graph declares"


def test_the_probe_names_the_build_and_its_providers() -> None:
    probe = engine().probe()
    assert probe.installed
    assert probe.versions["onnxruntime"] == onnxruntime.__version__
    assert probe.devices == tuple(onnxruntime.get_available_providers())
    assert probe.precision["CPUExecutionProvider"] == "float32"


def test_a_missing_engine_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, onnx_bundle: Bundle
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes its import fail
    probe = engine().probe()
    assert not probe.installed
    assert probe.devices == ()
    assert "pip install 'triptych[onnxruntime]'" in probe.remedy
    with pytest.raises(MissingDependencyError):
        engine().open(onnx_bundle.artifact("unet"))


# Files


@pytest.mark.parametrize("content", [None, b"", b"not a graph"], ids=["absent", "empty", "text"])
def test_what_cannot_be_loaded_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    artifact = save_graph(path, [helper.make_node("Neg", ["sample"], ["y"])])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match="want an ONNX graph that onnxruntime can load") as caught:
        engine().open(artifact)
    assert str(path) in str(caught.value)


def test_a_truncated_graph_is_refused(onnx_bundle: Bundle, tmp_path: Path) -> None:
    sound = onnx_bundle.artifact("text_encoder")
    path = tmp_path / "model.onnx"
    path.write_bytes(sound.path.read_bytes()[:-1000])
    artifact = Artifact(spec=sound.spec, format="onnx", path=path, bindings=sound.bindings)
    with pytest.raises(BundleError, match="want an ONNX graph"):
        engine().open(artifact)


# Foreign graphs


def test_a_graph_with_half_precision_ports_is_cast_to_and_from(tmp_path: Path) -> None:
    artifact = save_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Mul", ["sample", "timestep"], ["y"])],
        sample=TensorProto.FLOAT16,
        timestep=TensorProto.FLOAT16,
        output=TensorProto.FLOAT16,
    )
    result = run(artifact, SAMPLE, 3.0)
    expected = SAMPLE.astype(np.float16) * np.float16(3)
    assert result.dtype == np.float32
    assert np.array_equal(result, expected.astype(np.float32))


@pytest.mark.parametrize("shape", [[], [1]], ids=["scalar", "one"])
def test_an_integer_timestep_input_takes_whole_timesteps_alone(
    shape: list[int], tmp_path: Path
) -> None:
    artifact = save_graph(
        tmp_path / "model.onnx",
        [
            helper.make_node("Cast", ["timestep"], ["t"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["sample", "t"], ["y"]),
        ],
        timestep=TensorProto.INT64,
        timestep_shape=shape,
    )
    assert np.array_equal(run(artifact, SAMPLE, 500.0), SAMPLE * 500)
    with pytest.raises(TensorMismatchError, match="integer input cannot hold"):
        run(artifact, SAMPLE, 500.5)


def test_a_graph_with_a_dtype_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    artifact = save_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Cast", ["sample"], ["y"], to=TensorProto.FLOAT)],
        sample=TensorProto.BFLOAT16,
    )
    session = engine().open(artifact)
    with pytest.raises(TensorMismatchError, match="bfloat16"):
        CheckedSession(session, artifact)


def test_nan_is_counted(tmp_path: Path) -> None:
    artifact = save_graph(tmp_path / "model.onnx", [helper.make_node("Sqrt", ["sample"], ["y"])])
    with pytest.raises(NonFiniteError) as caught:
        run(artifact, SAMPLE, 1.0)
    assert (caught.value.count, caught.value.size) == (4, 8)
    assert caught.value.tensor == "noise_pred"


def test_optimums_folder_runs_as_it_lies(onnx_folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(onnx_folder, tmp_path / "copied")
    (copied / MANIFEST_NAME).unlink()
    ids = np.ones((1, 77), np.int64)
    with open_session(engine(), open_bundle(copied), "text_encoder_2") as session:
        assert session.run({"input_ids": ids})["text_embeds"].shape == (1, 64)


# Running


def test_a_failure_of_the_engine_is_a_backend_error(onnx_bundle: Bundle) -> None:
    beyond = np.full((1, 77), 10**6, np.int64)
    with (
        open_session(engine(), onnx_bundle, "text_encoder") as session,
        pytest.raises(BackendError, match="onnxruntime: could not run the graph"),
    ):
        session.run({"input_ids": beyond})


def test_a_closed_session_does_not_run(onnx_bundle: Bundle) -> None:
    session = open_session(engine(), onnx_bundle, "text_encoder")
    session.close()
    with pytest.raises(BackendError, match="closed session"):
        session.run({"input_ids": np.ones((1, 77), np.int64)})


def test_mapped_weights_give_the_same(onnx_bundle: Bundle) -> None:
    artifact = onnx_bundle.artifact("vae_decoder")
    feed = {"latents": np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)}
    found = []
    for mapped in (False, True):
        session = engine(map_weights=mapped).open(artifact)
        with CheckedSession(session, artifact) as checked:
            found.append(checked.run(feed)["image"])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_weights_take_no_memory(tmp_path: Path) -> None:
    """A child process each, whose private memory tells whether a 64 MiB matrix was copied."""
    random = np.random.default_rng(0).standard_normal((4096, 4096), np.float32)
    weight = onnx.numpy_helper.from_array(random, "weight")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    ports = [[helper.make_tensor_value_info(name, 1, ["rows", 4096])] for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "product", *ports, [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="weights")
    private = [_private_mib(tmp_path / "model.onnx", mapped=mapped) for mapped in (False, True)]
    assert private[0] - private[1] > 48


def _private_mib(path: Path, *, mapped: bool) -> float:
    program = f"""
import onnxruntime
from triptych.runtimes.base import RuntimeSettings
from triptych.runtimes.onnxruntime import OnnxRuntime
runtime = OnnxRuntime(settings=RuntimeSettings(map_weights={mapped}))
options = runtime._options(onnxruntime, "fp32")
session = onnxruntime.InferenceSession({str(path)!r}, sess_options=options)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return int(output.stdout) / 1024


@pytest.mark.slow
def test_a_pass_can_be_left_out_and_the_execution_says_so(onnx_bundle: Bundle) -> None:
    artifact = onnx_bundle.artifact("text_encoder")
    plain = OnnxRuntime(settings=RuntimeSettings(num_threads=1))
    told = {
        "all": plain,
        "basic": replace(plain, graph_optimization="basic"),
        "all but ConstantFolding, ConvMulFusion": replace(
            plain, disabled_optimizers=("ConstantFolding", "ConvMulFusion")
        ),
    }
    for text, runtime in told.items():
        session = runtime.open(artifact)
        assert session.execution.details["graph_optimization"] == text
        session.close()
