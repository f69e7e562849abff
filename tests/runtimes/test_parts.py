"""A network cut into parts computes what the whole computes, in any cut."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.bundle.bundle import Artifact, Bundle, open_bundle
from triptych.errors import BackendError
from triptych.models.feeds import unet_feed
from triptych.parity.metrics import rel_l2
from triptych.runtimes import _parts, make_runtime
from triptych.runtimes._parts import Part, PartsSession, Step, cut
from triptych.runtimes.base import Execution, RuntimeSettings
from triptych.runtimes.checked import CheckedSession
from triptych.tensors import TensorSpec
from triptych.types import Array

EXECUTION = Execution(runtime="test", version="1", device="cpu", precision="fp32")


RawStep: TypeAlias = tuple[tuple[str, ...], tuple[str, ...], int]
"""What a step reads, gives and weighs. Making one draws random numbers, which no strategy may:
its types are checked by sampling."""


@st.composite
def networks(draw: st.DrawFn) -> list[RawStep]:
    """Steps that each read earlier values, or nothing but weights."""
    values = ["x", "y"]
    steps = []
    for index in range(draw(st.integers(1, 12))):
        reads = draw(st.lists(st.sampled_from(values), max_size=3, unique=True))
        weight_bytes = draw(st.integers(0, 5))
        gives = tuple(f"{index}.{output}" for output in range(draw(st.integers(1, 2))))
        steps.append((tuple(reads), gives, weight_bytes))
        values.extend(gives)
    return steps


def compute(step: Step, position: int, known: Mapping[str, Array]) -> dict[str, Array]:
    total = sum((known[name] for name in step.reads), np.float64(position))
    return {name: np.asarray(total * (index + 2)) for index, name in enumerate(step.gives)}


def port(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float64", shape=())


@given(networks(), st.integers(0, 12), st.data())
def test_every_cut_computes_the_same(
    network: list[RawStep], part_bytes: int, data: st.DataObject
) -> None:
    steps = [
        Step(reads=reads, gives=gives, weight_bytes=weight_bytes)
        for reads, gives, weight_bytes in network
    ]
    feed = {"x": np.asarray(3.0), "y": np.asarray(5.0)}
    whole: dict[str, Array] = dict(feed)
    for position, step in enumerate(steps):
        whole |= compute(step, position, whole)
    last = steps[-1].gives[-1]
    results = {last, data.draw(st.sampled_from([name for step in steps for name in step.gives]))}
    parts = cut(steps, results=results, part_bytes=part_bytes)

    def run_part(part: Part, fed: Mapping[str, Array]) -> dict[str, Array]:
        assert set(fed) == set(part.reads)
        known = dict(fed)
        for position in part.steps:
            known |= compute(steps[position], position, known)
        return {name: known[name] for name in part.gives}

    wanted = sorted(results)
    session = PartsSession(
        parts,
        run_part=run_part,
        values={name: name for name in ("x", "y", *wanted)},
        ports=((port("x"), port("y")), tuple(map(port, wanted))),
        execution=EXECUTION,
    )
    found = session.run(feed, tuple(wanted))
    assert {name: float(found[name]) for name in wanted} == {
        name: float(whole[name]) for name in wanted
    }


def test_a_part_ends_before_it_has_too_many_weights() -> None:
    weights = (4, 4, 4, 9, 1)
    steps = [
        Step(reads=("x",) if index == 0 else (str(index - 1),), gives=(str(index),), weight_bytes=w)
        for index, w in enumerate(weights)
    ]
    parts = cut(steps, results=["4"], part_bytes=8)
    assert [part.steps for part in parts] == [(0, 1), (2,), (3,), (4,)]
    assert [part.reads for part in parts] == [("x",), ("1",), ("2",), ("3",)]
    assert [part.gives for part in parts] == [("1",), ("2",), ("3",), ("4",)]


def test_weights_behind_constants_count_where_they_are_read() -> None:
    steps = [
        Step(reads=(), gives=("w",), weight_bytes=8),
        Step(reads=("w",), gives=("widened",), weight_bytes=0),
        Step(reads=("x",), gives=("a",), weight_bytes=1),
        Step(reads=("a", "widened"), gives=("b",), weight_bytes=0),
    ]
    parts = cut(steps, results=["b"], part_bytes=8)
    assert [part.steps for part in parts] == [(2,), (0, 1, 3)]


def run_unet(artifact: Artifact, bundle: Bundle, runtime: str, *, low_memory: bool) -> list[Array]:
    """Two sizes, so that a cut which kept a shape of the first would show."""
    random = np.random.default_rng(0)
    session = make_runtime(runtime, RuntimeSettings(low_memory=low_memory)).open(artifact)
    assert isinstance(session, PartsSession) == (low_memory and runtime != "pytorch")
    if isinstance(session, PartsSession):
        assert len(session._parts) > 2
    with CheckedSession(session, artifact) as checked:
        return [
            checked.run(
                unet_feed(bundle.config, batch=batch, height=height, width=width, random=random)
            )["noise_pred"]
            for batch, height, width in ((1, 8, 8), (2, 9, 13))
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "runtime", "limit"),
    [
        ("onnx_folder", "onnxruntime", 5e-6),
        ("openvino_folder", "openvino", 5e-6),
        ("openvino_bf16_folder", "openvino", 3e-2),
    ],
)
def test_engines_run_parts(
    fixture: str,
    runtime: str,
    limit: float,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = open_bundle(request.getfixturevalue(fixture))
    monkeypatch.setattr(_parts, "PART_BYTES", 1 << 19)
    artifact = bundle.artifact("unet")
    whole = run_unet(artifact, bundle, runtime, low_memory=False)
    parts = run_unet(artifact, bundle, runtime, low_memory=True)
    for found, expected in zip(parts, whole, strict=True):
        assert rel_l2(found, expected) <= limit


def test_pytorch_widens_layer_by_layer(checkpoint_bundle: Bundle) -> None:
    artifact = checkpoint_bundle.artifact("unet")
    whole = run_unet(artifact, checkpoint_bundle, "pytorch", low_memory=False)
    lean = run_unet(artifact, checkpoint_bundle, "pytorch", low_memory=True)
    for found, expected in zip(lean, whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_closed_session_says_so(onnx_bundle: Bundle) -> None:
    runtime = make_runtime("onnxruntime", RuntimeSettings(low_memory=True))
    session = runtime.open(onnx_bundle.artifact("text_encoder"))
    session.close()
    with pytest.raises(BackendError, match="closed session"):
        session.run({"input_ids": np.zeros((1, 77), np.int64)}, ("last_hidden_state",))
