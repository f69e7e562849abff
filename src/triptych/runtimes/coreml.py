"""Core ML itself, through coremltools, on macOS.

What it computes in is Core ML's choice within the compute units, at least as exact as the program
declares; it does not tell. `coreml-reference` says what the program means.
"""

import platform
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, final, runtime_checkable

import numpy as np

from triptych.bundle import apple
from triptych.bundle.bundle import Artifact
from triptych.bundle.manifest import TensorRecord
from triptych.dependencies import import_coremltools
from triptych.errors import BackendError, BundleError, MissingDependencyError, UsageError
from triptych.mil.facts import declared_precision, fed_inputs
from triptych.mil.reading import read_program
from triptych.runtimes.base import Execution, Probe, RuntimeSettings
from triptych.tensors import PortSpecs, TensorSpec
from triptych.types import Array, FormatName, TensorMap

_COMPUTE_UNITS = ("all", "cpu_and_gpu", "cpu_only", "cpu_and_ne")
_COMPILED_SUFFIX = ".mlmodelc"
_COMPILED_FOLDER = "Resources"
_REFINER = re.compile(r"_refiner(_chunk\d)?$")

_LENT: list[Array] = []
"""What closed sessions had lent Core ML; see `_Part`."""


@final
class CoreMlSession:
    """One network, whole or in parts that run one after another."""

    def __init__(self, parts: "Sequence[_Part]", *, ports: PortSpecs, execution: Execution) -> None:
        self._parts = tuple(parts)
        self._dtypes = {port.name: port.dtype for port in ports.outputs}
        self.inputs = ports.inputs
        self.outputs = ports.outputs
        self.execution = execution

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs; each part is also fed what those before it computed."""
        if not self._parts:
            raise BackendError("coreml: got a run on a closed session. Open it again.")
        known = dict(feed)
        for part in self._parts:
            known |= part.predict(known)
        if missing := [name for name in outputs if name not in known]:
            raise BackendError(
                f"coreml: got {', '.join(sorted(known.keys() - feed.keys()))} computed, want "
                f"{', '.join(missing)}. The compiled model is not of this package: compile it "
                "again."
            )
        # Core ML may give float32 where the program declares float16, and strides of its own.
        return {name: np.array(known[name], self._dtypes[name], order="C") for name in outputs}

    def close(self) -> None:
        """Release the models."""
        for part in self._parts:
            _LENT.extend(part.lent)
        self._parts = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMl:
    """Core ML on some of a Mac's compute units.

    It loads a compiled model where there is one: beside the package, of its name; or in Resources
    beside it, of Apple's name, where ml-stable-diffusion's script puts it. Nothing tells whether
    that was made of this very package: compile again after an export. Without one, Core ML compiles
    the package each time it is opened.

    Attributes:
        settings: `device` is coremltools' ComputeUnit in lower case: all, cpu_and_gpu, cpu_only or
            cpu_and_ne; `precision` must be left to the program.
    """

    settings: RuntimeSettings
    name: str = "coreml"
    formats: tuple[FormatName, ...] = ("coreml",)

    def open(self, artifact: Artifact) -> CoreMlSession:
        """Load a network; `precision` of its execution is what the program declares."""
        if problem := _system_problem():
            raise BackendError(problem)
        engine = import_coremltools()
        units = self.settings.device or _COMPUTE_UNITS[0]
        if units not in _COMPUTE_UNITS:
            raise BackendError(
                f"coreml: got no compute units {units!r}, want one of {', '.join(_COMPUTE_UNITS)}."
            )
        network = _read_network(artifact)
        self._check_settings(network.precision)
        paths = [_compiled_path(package, artifact) or package for package in artifact.paths]
        parts = [
            _Part(_load(engine, path, units), inputs=inputs)
            for path, inputs in zip(paths, network.part_inputs, strict=True)
        ]
        return CoreMlSession(
            parts,
            ports=network.ports,
            execution=Execution(
                runtime=self.name,
                version=engine.__version__,
                device=units,
                precision=network.precision,
                details={
                    "macos": platform.mac_ver()[0],
                    "compute_units": units,
                    "loaded": ", ".join(_described(path) for path in paths),
                },
            ),
        )

    def probe(self) -> Probe:
        """Version and compute units; only a Mac has any."""
        problem = _system_problem()
        versions: dict[str, str] = {}
        if not problem:
            try:
                versions = {"coremltools": import_coremltools().__version__}
            except MissingDependencyError as error:
                problem = str(error)
        units = () if problem else _COMPUTE_UNITS
        return Probe(
            runtime=self.name,
            installed=not problem,
            versions=versions,
            devices=units,
            precision=dict.fromkeys(units, "as the program declares, or more exactly"),
            remedy=problem,
        )

    def _check_settings(self, declared: str) -> None:
        settings = self.settings
        if settings.precision not in (None, declared):
            raise UsageError(
                f"coreml: got --precision {settings.precision}, but a program runs in the "
                f"precision it was exported in: {declared}. Export it again."
            )
        if settings.cache_dir is not None:
            raise UsageError(
                "coreml: got --cache-dir, but Core ML keeps its cache itself. Leave it out."
            )
        if settings.num_threads is not None:
            raise UsageError(
                f"coreml: got {settings.num_threads} threads, but Core ML chooses their number. "
                "Leave it out."
            )


def make_runtime(settings: RuntimeSettings) -> CoreMl:
    """Core ML with these settings."""
    return CoreMl(settings=settings)


@runtime_checkable
class _Model(Protocol):
    """What coremltools' MLModel and CompiledMLModel have in common."""

    def predict(self, data: dict[str, Array]) -> dict[str, Array]:
        """Compute every output."""


@final
class _Part:
    """One loaded model, and the arrays that it reads.

    coremltools lends Core ML the memory of what it is fed, which must be writeable and may not be
    float16. Core ML gives an array back when it likes, even after the model's end, on a thread of
    its own; where nobody else holds the array, Python crashes. So each input has one array for all
    runs, which is never let go.

    Source:
        coremltools 9.0, coremlpython/CoreMLPythonArray.mm, and the crash and its mending in
        github.com/apple/coremltools/pull/2827, open when this was written.
    """

    def __init__(self, model: _Model, *, inputs: tuple[str, ...] | None) -> None:
        """`inputs` are the model's; None where they are not known, and it takes what it needs."""
        self._model = model
        self._inputs = inputs
        self._lent: dict[tuple[str, tuple[int, ...]], Array] = {}

    @property
    def lent(self) -> tuple[Array, ...]:
        """Every array that the model was fed."""
        return tuple(self._lent.values())

    def predict(self, known: TensorMap) -> dict[str, Array]:
        """Compute all that the model gives, from what it takes of `known`."""
        feed = {name: self._lend(name, known[name]) for name in self._inputs or known}
        try:
            return dict(self._model.predict(feed))
        except Exception as error:  # Core ML's are RuntimeError, coremltools' plain Exception
            raise BackendError(f"coreml: could not run the model. {error}") from error

    def _lend(self, name: str, value: Array) -> Array:
        key = (name, value.shape)
        if key not in self._lent:
            dtype = np.dtype(np.float32) if value.dtype == np.float16 else value.dtype
            self._lent[key] = np.empty(value.shape, dtype)
        self._lent[key][...] = value
        return self._lent[key]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """What is known of a network before it is loaded.

    Attributes:
        ports: what must be fed to all its parts together, and what the last gives.
        precision: the arithmetic that its programs declare.
        part_inputs: what each part takes, where that is known.
    """

    ports: PortSpecs
    precision: str
    part_inputs: tuple[tuple[str, ...] | None, ...]


def _read_network(artifact: Artifact) -> _Network:
    """Read the packages, which compiled models need not tell; else the manifest.

    Raises:
        BundleError: neither is there, or a package is damaged.
    """
    if all(package.is_dir() for package in artifact.paths):
        programs = [read_program(package) for package in artifact.paths]
        return _Network(
            ports=PortSpecs(inputs=fed_inputs(programs), outputs=programs[-1].outputs),
            precision=declared_precision(programs),
            part_inputs=tuple(tuple(spec.name for spec in program.inputs) for program in programs),
        )
    record = artifact.record
    if record is None:
        raise BundleError(
            f"{artifact.path}: got no such package and no manifest, want one of them beside a "
            "compiled model: it does not tell what it takes."
        )
    return _Network(
        ports=PortSpecs(inputs=_specs(record.inputs), outputs=_specs(record.outputs)),
        precision=record.precision,
        part_inputs=(None,) * len(artifact.paths),
    )


def _specs(records: Sequence[TensorRecord]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=record.artifact_name, dtype=record.dtype, shape=record.shape)
        for record in records
    )


def _compiled_path(package: Path, artifact: Artifact) -> Path | None:
    """The compiled model of a package, where there is one."""
    submodule = "refiner" if _REFINER.search(package.stem) else artifact.spec.name
    chunk = artifact.chunks.index(package) + 1 if artifact.chunks else None
    name = apple.compiled_name(submodule, chunk=chunk)
    candidates = (package.with_suffix(_COMPILED_SUFFIX), package.parent / _COMPILED_FOLDER / name)
    return next((path for path in candidates if path.is_dir()), None)


def _load(engine: ModuleType, path: Path, units: str) -> _Model:
    """Load a compiled model, or compile a package and load that."""
    chosen = engine.ComputeUnit[units.upper()]
    try:
        if path.suffix == _COMPILED_SUFFIX:
            compiled: _Model = engine.models.CompiledMLModel(str(path), compute_units=chosen)
            return compiled
        with warnings.catch_warnings():
            # All that coremltools does about a package that Core ML refuses.
            warnings.filterwarnings("error", "You will not be able to run predict", RuntimeWarning)
            model = engine.models.MLModel(str(path), compute_units=chosen)
        model.get_compiled_model_path()  # raises where the program is newer than the system
    except Exception as error:  # Core ML's are RuntimeError, coremltools' plain Exception
        raise BackendError(f"{path}: Core ML could not load it on {units}. {error}") from error
    package: _Model = model
    return package


def _described(path: Path) -> str:
    kind = "compiled beforehand" if path.suffix == _COMPILED_SUFFIX else "compiled when opened"
    return f"{path.name} ({kind})"


def _system_problem() -> str:
    """Why Core ML cannot run here; empty where it can."""
    system = platform.system()
    if system == "Darwin":
        return ""
    return (
        f"coreml: runs on macOS only, this is {system}. Use --runtime coreml-reference, which "
        "interprets the program anywhere."
    )
