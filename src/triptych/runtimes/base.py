"""What an engine promises. Protocols, so that an engine needs to inherit nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from triptych.bundle.bundle import Artifact
from triptych.errors import MissingDependencyError
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, Precision, TensorMap


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """What a user can ask of any engine. None means the engine's stated default.

    Attributes:
        device: the engine's own word: cpu, cuda or mps for pytorch; an execution provider's name
            for onnxruntime; CPU, GPU, NPU and the like for openvino; all, cpu_and_gpu, cpu_only or
            cpu_and_ne for coreml.
        precision: the arithmetic to compute in, where the engine can choose.
        num_threads: CPU threads inside one operator.
        cache_dir: where compiled networks are kept for the next start, where the engine can.
        map_weights: leave weights in their mapped files where the engine would repack them in
            memory, and is as fast without.
        low_memory: leave weights in their files and convert them each time they are used, however
            long that takes, where the engine can.
    """

    device: str | None = None
    precision: Precision | None = None
    num_threads: int | None = None
    cache_dir: Path | None = None
    map_weights: bool = True
    low_memory: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What really runs, read back from the engine where it can be.

    Attributes:
        runtime: the engine's name.
        version: the engine's version.
        device: where it runs, in the engine's words.
        precision: the arithmetic, as far as the engine tells.
        declared_precision: the arithmetic it was to compute in, by engines that read back what
            ran; a check fails where the two differ. None where nothing was read back.
        details: switches that change numbers, such as TF32.
    """

    runtime: str
    version: str
    device: str
    precision: str
    declared_precision: Precision | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What an engine can do on this machine.

    Attributes:
        runtime: the engine's name.
        installed: its packages can be imported.
        versions: of its packages.
        devices: what it can run on here, in its own words.
        precision: what float32 models are really computed in by default, by device.
        remedy: what to install, where something is missing.
        arithmetic: what each device has circuits for, in the engine's words, where it tells.
    """

    runtime: str
    installed: bool
    versions: Mapping[str, str]
    devices: tuple[str, ...]
    precision: Mapping[str, str]
    remedy: str
    arithmetic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def absent_probe(runtime: str, reason: MissingDependencyError) -> Probe:
    """The probe of an engine that is not installed."""
    return Probe(
        runtime=runtime,
        installed=False,
        versions={},
        devices=(),
        precision={},
        remedy=str(reason),
    )


@runtime_checkable
class Session(Protocol):
    """One opened component, speaking the artifact's own names and dtypes.

    An implementer makes three raw calls: open (by the Runtime), run, close. Checks, mapping,
    timing and reports are written once, in CheckedSession. Outputs belong to the caller: they share
    no memory with the feed, and a later run does not change them.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs as the engine reports them; words for dynamic axes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs as the engine reports them; words for dynamic axes."""

    @property
    def execution(self) -> Execution:
        """What really runs."""

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs from the named inputs."""

    def close(self) -> None:
        """Give the memory back. Nothing may be called after it."""


@runtime_checkable
class Runtime(Protocol):
    """An engine with its settings. Making one imports nothing heavy."""

    @property
    def name(self) -> str:
        """The engine's name: its module's, with dashes."""

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """The formats it reads."""

    def open(self, artifact: Artifact) -> Session:
        """Open one component.

        Raises:
            MissingDependencyError: the engine is not installed.
            BackendError: the device is not there.
            BundleError: the engine cannot read the artifact.
        """

    def probe(self) -> Probe:
        """What the engine could do here; never raises for a missing engine."""
