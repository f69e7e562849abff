from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle
from triptych.bundle.layouts import Binding, Bindings
from triptych.errors import BundleError, NonFiniteError, TensorMismatchError, UsageError
from triptych.models.component import ComponentSpec
from triptych.runtimes import make_runtime, runtime_names, runtimes_for
from triptych.runtimes.base import Execution, Probe
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, TensorMap

SPEC = ComponentSpec(
    name="unet",
    inputs=(
        TensorSpec(name="sample", dtype="float32", shape=("batch", 2)),
        TensorSpec(name="timestep", dtype="float32", shape=()),
    ),
    outputs=(TensorSpec(name="noise_pred", dtype="float32", shape=("batch", 2)),),
)
ARTIFACT = Artifact(
    spec=SPEC,
    format="onnx",
    path=Path("unet") / "model.onnx",
    bindings=Bindings(
        inputs=(
            Binding(name="sample", artifact_name="x"),
            Binding(name="timestep", artifact_name="t"),
        ),
        outputs=(Binding(name="noise_pred", artifact_name="y"),),
    ),
)


def port(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@dataclass(kw_only=True)
class ScriptedSession:
    """An engine's raw session that gives what it was told to, and remembers what it was fed."""

    inputs: tuple[TensorSpec, ...] = (port("x", "float32", "N", 2), port("t", "float32"))
    outputs: tuple[TensorSpec, ...] = (port("y", "float32", "N", 2),)
    result: Array = field(default_factory=lambda: np.ones((1, 2), np.float32))
    feeds: list[TensorMap] = field(default_factory=list)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    num_closed: int = 0
    execution: Execution = field(
        default_factory=lambda: Execution(
            runtime="scripted", version="1", device="here", precision="fp32"
        )
    )

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        self.feeds.append(feed)
        self.asked.append(outputs)
        return {"y": self.result}

    def close(self) -> None:
        self.num_closed += 1


@dataclass(frozen=True, kw_only=True)
class ScriptedRuntime:
    session: ScriptedSession
    name: str = "scripted"
    formats: tuple[FormatName, ...] = ("onnx",)

    def open(self, artifact: Artifact) -> ScriptedSession:
        assert artifact.format in self.formats
        return self.session

    def probe(self) -> Probe:
        raise NotImplementedError


def feed(timestep: float = 500.0, *, batch: int = 1) -> dict[str, Array]:
    sample = np.arange(2 * batch, dtype=np.float32).reshape(batch, 2)
    return {"sample": sample, "timestep": np.array(timestep, np.float32)}


# The registry


def test_the_registry_lists_engines_by_their_modules() -> None:
    assert {"onnxruntime", "pytorch"} <= set(runtime_names())
    assert not {"base", "checked"} & set(runtime_names())
    assert runtimes_for("onnx") == ("onnxruntime", "openvino")
    assert "coreml-reference" in runtimes_for("coreml")
    assert runtimes_for("diffusers") == ("pytorch",)


def test_an_unknown_engine_is_told_which_there_are() -> None:
    with pytest.raises(UsageError, match=r"got 'tensorrt', want one of .*onnxruntime, .*pytorch"):
        make_runtime("tensorrt")


# Names and dtypes


def test_tensors_cross_under_the_graphs_names_and_come_back_under_ours() -> None:
    raw = ScriptedSession()
    outputs = CheckedSession(raw, ARTIFACT).run(feed())
    assert raw.asked == [("y",)]
    assert set(raw.feeds[0]) == {"x", "t"}
    assert np.array_equal(raw.feeds[0]["x"], feed()["sample"])
    assert set(outputs) == {"noise_pred"}


def test_floats_are_cast_to_the_graphs_and_back() -> None:
    raw = ScriptedSession(
        inputs=(port("x", "float16", "N", 2), port("t", "float64")),
        outputs=(port("y", "float16", "N", 2),),
        result=np.full((1, 2), 0.1, np.float16),
    )
    outputs = CheckedSession(raw, ARTIFACT).run(feed(500.5))
    assert {name: value.dtype.name for name, value in raw.feeds[0].items()} == {
        "x": "float16",
        "t": "float64",
    }
    assert raw.feeds[0]["t"] == 500.5
    assert outputs["noise_pred"].dtype == np.float32
    assert np.array_equal(outputs["noise_pred"], raw.result.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (1,), ("steps",)])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_an_integer_timestep_takes_whole_numbers_alone(
    dtype: str, shape: tuple[int | str, ...]
) -> None:
    raw = ScriptedSession(inputs=(port("x", "float32", "N", 2), port("t", dtype, *shape)))
    session = CheckedSession(raw, ARTIFACT)
    session.run(feed(500.0))
    assert raw.feeds[0]["t"].dtype == dtype
    assert raw.feeds[0]["t"].shape == ((1,) if shape else ())
    assert int(raw.feeds[0]["t"].item()) == 500
    with pytest.raises(TensorMismatchError, match="cannot hold this value") as caught:
        session.run(feed(500.5))
    assert caught.value.tensor == "t"
    assert len(raw.feeds) == 1


def test_engines_get_contiguous_arrays() -> None:
    raw = ScriptedSession()
    wide = np.arange(4, dtype=np.float32).reshape(1, 4)
    CheckedSession(raw, ARTIFACT).run({**feed(), "sample": wide[:, ::2]})
    assert raw.feeds[0]["x"].flags.c_contiguous
    assert raw.feeds[0]["x"].tolist() == [[0, 2]]


def test_outputs_are_contiguous() -> None:
    raw = ScriptedSession(result=np.ones((2, 3), np.float32).T[:2].T)
    outputs = CheckedSession(raw, ARTIFACT).run(feed(batch=2))
    assert outputs["noise_pred"].flags.c_contiguous


def test_more_outputs_than_the_specs_are_not_asked_for() -> None:
    raw = ScriptedSession(outputs=(port("z", "float32", 5), port("y", "float32", "N", 2)))
    CheckedSession(raw, ARTIFACT).run(feed())
    assert raw.asked == [("y",)]


# Refusals


@pytest.mark.parametrize(
    "bad",
    [
        {"sample": feed()["sample"]},
        {**feed(), "extra": feed()["sample"]},
        {**feed(), "sample": feed()["sample"].astype(np.float64)},
        {**feed(), "sample": np.ones((1, 3), np.float32)},
        {**feed(), "timestep": np.ones(1, np.float32)},
    ],
    ids=["missing", "unknown", "dtype", "length", "rank"],
)
def test_a_wrong_feed_never_reaches_the_engine(bad: TensorMap) -> None:
    raw = ScriptedSession()
    session = CheckedSession(raw, ARTIFACT)
    with pytest.raises(TensorMismatchError):
        session.run(bad)
    assert not raw.feeds
    assert not session.call_seconds


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (2,), (1, 2, 1)])
def test_an_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    raw = ScriptedSession(result=np.ones(shape, np.float32))
    with pytest.raises(TensorMismatchError) as caught:
        CheckedSession(raw, ARTIFACT).run(feed())
    assert caught.value.tensor == "noise_pred"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted(value: float) -> None:
    raw = ScriptedSession(result=np.array([[1, value], [value, value]], np.float32))
    with pytest.raises(NonFiniteError) as caught:
        CheckedSession(raw, ARTIFACT).run(feed(batch=2))
    assert (caught.value.component, caught.value.tensor) == ("unet", "noise_pred")
    assert (caught.value.count, caught.value.size) == (3, 4)


def test_each_run_of_the_engine_is_timed() -> None:
    session = CheckedSession(ScriptedSession(), ARTIFACT)
    for _ in range(3):
        session.run(feed())
    assert len(session.call_seconds) == 3
    assert all(seconds >= 0 for seconds in session.call_seconds)


# Opening


@pytest.mark.parametrize(
    ("ports", "problem"),
    [
        ((port("x", "float32", "N", 2),), "want 't' among them"),
        (
            (port("x", "float32", "N", 2), port("t", "float32"), port("u", "float32")),
            "got inputs u that SDXL has no tensor for",
        ),
    ],
    ids=["missing", "unknown"],
)
def test_a_graph_with_other_inputs_is_refused(ports: tuple[TensorSpec, ...], problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        CheckedSession(ScriptedSession(inputs=ports), ARTIFACT)


def test_a_graph_without_the_output_is_refused() -> None:
    with pytest.raises(BundleError, match="got outputs z, want 'y' among them"):
        CheckedSession(ScriptedSession(outputs=(port("z", "float32", "N", 2),)), ARTIFACT)


@pytest.mark.parametrize(
    "wrong",
    [port("x", "float32", "N", 3), port("x", "float32", "N"), port("x", "float32", "N", 2, 1)],
    ids=["length", "axis less", "axis more"],
)
def test_a_graph_of_other_sizes_is_refused(wrong: TensorSpec) -> None:
    raw = ScriptedSession(inputs=(wrong, port("t", "float32")))
    with pytest.raises(TensorMismatchError, match="of different models"):
        CheckedSession(raw, ARTIFACT)


@pytest.mark.parametrize("dtype", ["tensor(bfloat16)", "tensor(string)", "seq(tensor(float))"])
def test_a_graph_with_a_dtype_that_numpy_lacks_is_refused_when_it_opens(dtype: str) -> None:
    raw = ScriptedSession(inputs=(port("x", dtype, "N", 2), port("t", "float32")))
    with pytest.raises(TensorMismatchError, match="x"):
        CheckedSession(raw, ARTIFACT)


def test_a_session_that_cannot_be_used_is_closed(onnx_bundle: Bundle) -> None:
    raw = ScriptedSession()
    with pytest.raises(BundleError):
        open_session(ScriptedRuntime(session=raw), onnx_bundle, "vae_decoder")
    assert raw.num_closed == 1


def test_leaving_the_block_closes_the_session() -> None:
    raw = ScriptedSession()
    with CheckedSession(raw, ARTIFACT):
        assert raw.num_closed == 0
    assert raw.num_closed == 1


def test_an_engine_that_does_not_read_the_format_is_refused(checkpoint_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="got the diffusers format, onnxruntime reads onnx"):
        open_session(make_runtime("onnxruntime"), checkpoint_bundle, "unet")


# Graphs of fixed shapes, in Apple's layout

FIXED_SPEC = ComponentSpec(
    name="unet",
    inputs=(
        TensorSpec(name="sample", dtype="float32", shape=("batch", 4, "height", "width")),
        TensorSpec(name="timestep", dtype="float32", shape=()),
        TensorSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", 3, 5)),
    ),
    outputs=(
        TensorSpec(name="noise_pred", dtype="float32", shape=("batch", 4, "height", "width")),
    ),
)
FIXED_ARTIFACT = Artifact(
    spec=FIXED_SPEC,
    format="coreml",
    path=Path("m_unet.mlpackage"),
    bindings=Bindings(
        inputs=(
            Binding(name="sample", artifact_name="sample"),
            Binding(name="timestep", artifact_name="timestep", layout="per_row"),
            Binding(
                name="encoder_hidden_states", artifact_name="encoder_hidden_states", layout="bc1s"
            ),
        ),
        outputs=(Binding(name="noise_pred", artifact_name="noise_pred"),),
    ),
)


@dataclass(kw_only=True)
class FixedSession:
    """A U-Net built for so many rows of 2 x 6 cells, which adds its timestep to each sample."""

    batch: int
    feeds: list[TensorMap] = field(default_factory=list)
    execution: Execution = field(default_factory=lambda: ScriptedSession().execution)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (
            port("sample", "float32", self.batch, 4, 2, 6),
            port("timestep", "float32", self.batch),
            port("encoder_hidden_states", "float16", self.batch, 5, 1, 3),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (port("noise_pred", "float32", self.batch, 4, 2, 6),)

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        assert outputs == ("noise_pred",)
        self.feeds.append(feed)
        return {"noise_pred": feed["sample"] + feed["timestep"].reshape(-1, 1, 1, 1)}

    def close(self) -> None:
        raise NotImplementedError


def fixed_feed(batch: int, *, height: int = 2, width: int = 6) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((batch, 4, height, width)).astype(np.float32),
        "timestep": np.array(7.5, np.float32),
        "encoder_hidden_states": random.standard_normal((batch, 3, 5)).astype(np.float32),
    }


def test_tensors_cross_in_the_graphs_layout() -> None:
    raw = FixedSession(batch=2)
    given = fixed_feed(2)
    CheckedSession(raw, FIXED_ARTIFACT).run(given)
    (fed,) = raw.feeds
    assert fed["timestep"].tolist() == [7.5, 7.5]
    assert fed["encoder_hidden_states"].dtype == np.float16
    assert fed["encoder_hidden_states"].flags.c_contiguous
    for row, token, channel in np.ndindex(2, 3, 5):
        value = given["encoder_hidden_states"][row, token, channel].astype(np.float16)
        assert fed["encoder_hidden_states"][row, channel, 0, token] == value


@pytest.mark.parametrize(("built", "batch", "calls"), [(1, 1, 1), (1, 4, 4), (2, 2, 1), (2, 6, 3)])
def test_a_fixed_batch_is_run_as_often_as_the_feed_needs(
    built: int, batch: int, calls: int
) -> None:
    raw = FixedSession(batch=built)
    session = CheckedSession(raw, FIXED_ARTIFACT)
    given = fixed_feed(batch)
    outputs = session.run(given)
    assert np.array_equal(outputs["noise_pred"], given["sample"] + np.float32(7.5))
    assert len(raw.feeds) == len(session.call_seconds) == calls
    assert all(len(fed["sample"]) == built for fed in raw.feeds)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (fixed_feed(1), "batch': got 1, want a multiple of 2"),
        (fixed_feed(3), "batch': got 3, want a multiple of 2"),
        (fixed_feed(2, height=4), "height': got 4, want 2"),
        (fixed_feed(2, width=5, height=3), "height, width': got 3, 5, want 2, 6"),
    ],
)
def test_a_size_that_was_not_built_is_refused_with_the_built_one(
    given: TensorMap, told: str
) -> None:
    raw = FixedSession(batch=2)
    with pytest.raises(TensorMismatchError, match=told) as refused:
        CheckedSession(raw, FIXED_ARTIFACT).run(given)
    assert "m_unet.mlpackage was built for batch 2, height 2, width 6" in str(refused.value)
    assert not raw.feeds
