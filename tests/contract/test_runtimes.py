"""Every registered engine keeps the contract, and the contract notices engines that do not."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from triptych.bundle.bundle import Artifact, Bundle
from triptych.errors import BackendError, CheckFailedError, NonFiniteError
from triptych.runtimes import make_runtime, runtime_names
from triptych.runtimes.base import Execution, Probe, Runtime, Session
from triptych.tensors import TensorSpec
from triptych.testing import check_runtime
from triptych.types import Array, FormatName, TensorMap

FIXTURES: dict[FormatName, str] = {
    "coreml": "coreml_bundle",
    "diffusers": "checkpoint_bundle",
    "onnx": "onnx_bundle",
    "openvino": "openvino_bundle",
}

EVERY_ENGINE = [(name, read) for name in runtime_names() for read in make_runtime(name).formats]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "artifact_format"), EVERY_ENGINE)
def test_every_engine_keeps_the_contract(
    name: str, artifact_format: FormatName, request: pytest.FixtureRequest
) -> None:
    if name == "coreml" and platform.system() != "Darwin":
        pytest.skip("Core ML runs on macOS only")
    bundle: Bundle = request.getfixturevalue(FIXTURES[artifact_format])
    check_runtime(make_runtime(name), bundle)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "artifact_format"), EVERY_ENGINE)
def test_every_engine_keeps_the_contract_on_a_preview_decoder(
    name: str, artifact_format: FormatName, preview_bundles: Mapping[FormatName, Bundle]
) -> None:
    if name == "coreml" and platform.system() != "Darwin":
        pytest.skip("Core ML runs on macOS only")
    check_runtime(make_runtime(name), preview_bundles[artifact_format])


def test_a_bundle_without_components_has_not_passed(onnx_bundle: Bundle) -> None:
    empty = replace(onnx_bundle, artifacts={})
    with pytest.raises(CheckFailedError, match="a bundle without components"):
        check_runtime(make_runtime("onnxruntime"), empty)


# Engines with one fault each: a real one, wrapped.

Raw = Callable[[TensorMap, tuple[str, ...]], dict[str, Array]]
Fault = Callable[[Raw, TensorMap, tuple[str, ...]], dict[str, Array]]


@dataclass(frozen=True, kw_only=True)
class FaultySession:
    session: Session
    fault: Fault
    forgets_close: bool = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.outputs

    @property
    def execution(self) -> Execution:
        return self.session.execution

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        return self.fault(self.session.run, feed, outputs)

    def close(self) -> None:
        if not self.forgets_close:
            self.session.close()


def sound(run: Raw, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
    return run(feed, outputs)


@dataclass(frozen=True, kw_only=True)
class FaultyRuntime:
    inner: Runtime
    fault: Fault = sound
    forgets_close: bool = False
    name: str = "onnxruntime"
    formats: tuple[FormatName, ...] = ("onnx",)
    probe_changes: dict[str, object] = field(default_factory=dict)
    execution_changes: dict[str, str] = field(default_factory=dict)

    def open(self, artifact: Artifact) -> FaultySession:
        session = self.inner.open(artifact)
        if self.execution_changes:
            session = Relabelled(session=session, changes=self.execution_changes)
        return FaultySession(session=session, fault=self.fault, forgets_close=self.forgets_close)

    def probe(self) -> Probe:
        return replace(self.inner.probe(), **self.probe_changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Relabelled:
    session: Session
    changes: dict[str, str]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.outputs

    @property
    def execution(self) -> Execution:
        return replace(self.session.execution, **self.changes)  # type: ignore[arg-type]

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        return self.session.run(feed, outputs)

    def close(self) -> None:
        self.session.close()


def changes_the_feed(run: Raw, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
    results = run(feed, outputs)
    for value in feed.values():
        value.flat[0] += 1
    return results


def gives_one_batch_too_many(
    run: Raw, feed: TensorMap, outputs: tuple[str, ...]
) -> dict[str, Array]:
    return {name: np.concatenate([value, value]) for name, value in run(feed, outputs).items()}


def gives_nan(run: Raw, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
    results = {name: value.copy() for name, value in run(feed, outputs).items()}
    results[outputs[0]].flat[0] = np.nan
    return results


def fails_on_read_only(run: Raw, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
    if not all(value.flags.writeable for value in feed.values()):
        raise BackendError("cannot take read-only arrays")
    return run(feed, outputs)


class Drifting:
    """Another last bit with every run, as engines with unordered sums have."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, run: Raw, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        self.runs += 1
        factor = np.float32(1 + self.runs * 1e-6)
        return {name: value * factor for name, value in run(feed, outputs).items()}


class Reusing:
    """One output buffer for each shape, as engines with bound outputs have."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, tuple[int, ...]], Array] = {}

    def __call__(self, run: Raw, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        results = {}
        for name, value in run(feed, outputs).items():
            buffer = self.buffers.setdefault((name, value.shape), np.empty_like(value))
            buffer[...] = value
            results[name] = buffer
        return results


@pytest.fixture
def engine() -> Runtime:
    return make_runtime("onnxruntime")


@pytest.mark.parametrize(
    ("fault", "clause"),
    [
        (changes_the_feed, "a changed feed"),
        (gives_one_batch_too_many, "want float32"),
        (fails_on_read_only, "read-only"),
        (Drifting(), "other bits for the same feed"),
        (Reusing(), "a result that a later run changed"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_faulty_run_breaks_the_contract(
    fault: Fault, clause: str, engine: Runtime, onnx_bundle: Bundle
) -> None:
    with pytest.raises((CheckFailedError, BackendError), match=clause):
        check_runtime(FaultyRuntime(inner=engine, fault=fault), onnx_bundle)


def test_nan_breaks_the_contract(engine: Runtime, onnx_bundle: Bundle) -> None:
    with pytest.raises(NonFiniteError):
        check_runtime(FaultyRuntime(inner=engine, fault=gives_nan), onnx_bundle)


def test_running_after_close_breaks_the_contract(engine: Runtime, onnx_bundle: Bundle) -> None:
    with pytest.raises(CheckFailedError, match=r"when it is closed: got no error"):
        check_runtime(FaultyRuntime(inner=engine, forgets_close=True), onnx_bundle)


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"runtime": "another"}, "got 'another', want the engine's name"),
        ({"installed": False}, "not installed"),
        ({"versions": {}}, "no versions"),
        ({"devices": ()}, "no devices"),
        ({"devices": ("AnUnknownProvider",)}, "without AnUnknownProvider"),
    ],
)
def test_a_wrong_probe_breaks_the_contract(
    changes: dict[str, object], clause: str, engine: Runtime, onnx_bundle: Bundle
) -> None:
    with pytest.raises(CheckFailedError, match=clause):
        check_runtime(FaultyRuntime(inner=engine, probe_changes=changes), onnx_bundle)


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"runtime": "another"}, "got 'another', want its own name"),
        ({"version": ""}, "no version"),
        ({"device": "elsewhere"}, "device 'elsewhere'"),
    ],
)
def test_a_wrong_execution_breaks_the_contract(
    changes: dict[str, str], clause: str, engine: Runtime, onnx_bundle: Bundle
) -> None:
    with pytest.raises(CheckFailedError, match=clause):
        check_runtime(FaultyRuntime(inner=engine, execution_changes=changes), onnx_bundle)


def test_an_engine_without_formats_breaks_the_contract(
    engine: Runtime, onnx_bundle: Bundle
) -> None:
    with pytest.raises(CheckFailedError, match="no formats"):
        check_runtime(FaultyRuntime(inner=engine, formats=()), onnx_bundle)
