"""ONNX Runtime: runs ONNX graphs on the execution provider that was asked for, and no other."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias, final

from triptych.bundle.bundle import Artifact
from triptych.dependencies import import_optional
from triptych.errors import BackendError, BundleError, MissingDependencyError, UsageError
from triptych.models.precisions import is_compressed
from triptych.runtimes._onnx_attention import PASS_NAME, fuse_attention
from triptych.runtimes._onnx_parts import open_parts
from triptych.runtimes._onnx_reading import read_graph
from triptych.runtimes._parts import PartsSession
from triptych.runtimes.base import Execution, Probe, RuntimeSettings, absent_probe
from triptych.tensors import TensorSpec
from triptych.types import Array, ComponentName, FormatName, Precision, TensorMap

if TYPE_CHECKING:
    import onnxruntime

_DEFAULT_PROVIDER = "CPUExecutionProvider"
_FUSED_COMPONENTS: tuple[ComponentName, ...] = ("unet", "vae_encoder", "vae_decoder")
"""Those whose attention has no mask."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where a graph that comes from memory has its external weights: onnxruntime's
onnxruntime_session_options_config_keys.h."""

_NO_PREPACKING = "session.disable_prepacking"
"""Weights of products are read where they lie, mapped where they are external: as above. Measured
with 1.31 on a full-size U-Net in float32: 1.7 GiB instead of 10.0, and no slower. Kernels for
compressed weights need them repacked, and a foreign graph does not say whether it has those."""

_DISTRIBUTION = re.compile(r"^onnxruntime(-.+)?$")

GraphOptimization: TypeAlias = Literal["disabled", "basic", "extended", "layout", "all"]
"""How far a graph is rewritten before it runs, in ONNX Runtime's words; each does what those before
it do."""

_LEVELS: Mapping[GraphOptimization, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}


@final
class OnnxRuntimeSession:
    """One ONNX graph in one InferenceSession."""

    def __init__(self, session: "onnxruntime.InferenceSession", execution: Execution) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self.execution = execution
        self.inputs = _ports(session.get_inputs())
        self.outputs = _ports(session.get_outputs())

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs."""
        if self._session is None:
            raise BackendError("onnxruntime: got a run on a closed session. Open it again.")
        try:
            results = self._session.run(list(outputs), dict(feed))
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"onnxruntime: could not run the graph. {error}") from error
        return dict(zip(outputs, results, strict=True))

    def close(self) -> None:
        """Release the engine's memory."""
        self._session = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntime:
    """ONNX Runtime with one execution provider.

    Attributes:
        settings: `device` is an execution provider's name; `precision` must be left to the graph.
        graph_optimization: how far the graph is rewritten before it runs.
        disabled_optimizers: passes that are left out nevertheless. ONNX Runtime says nothing about
            a name that it does not know.
    """

    settings: RuntimeSettings
    graph_optimization: GraphOptimization = "all"
    disabled_optimizers: tuple[str, ...] = ()
    name: str = "onnxruntime"
    formats: tuple[FormatName, ...] = ("onnx",)

    def open(self, artifact: Artifact) -> OnnxRuntimeSession | PartsSession:
        """Load a graph on the provider; an absent provider is an error, never a CPU run.

        With little memory nothing is loaded before it is run.
        """
        engine = _import_engine()
        provider = self._check_settings(engine, artifact)
        execution = self._execution(engine, provider, artifact)
        if self.settings.low_memory:
            return open_parts(
                artifact.path,
                open_graph=lambda graph: self._load(artifact, graph),
                execution=execution,
            )
        graph, told = self._fused(artifact, provider)
        if told:
            details = {**execution.details, "attention": told}
            execution = replace(execution, details=details)
        return OnnxRuntimeSession(self._load(artifact, graph), execution)

    def _fused(self, artifact: Artifact, provider: str) -> tuple[bytes | None, str]:
        """A graph with its attention fused, where that is asked for, and what is said of it."""
        wanted = (
            provider == _DEFAULT_PROVIDER
            and artifact.spec.name in _FUSED_COMPONENTS
            and self.graph_optimization not in ("disabled", "basic")
            and PASS_NAME not in self.disabled_optimizers
        )
        if not wanted:
            return None, ""
        try:
            model = read_graph(artifact.path)
        except MissingDependencyError:  # what rewrites a graph is not needed to run one
            return None, "not fused: onnx is not installed"
        num_fused = fuse_attention(model)
        return (model.SerializeToString(), f"{num_fused} fused") if num_fused else (None, "")

    def open_graph(self, graph: bytes, artifact: Artifact) -> OnnxRuntimeSession:
        """Load a graph that was made from an artifact's; external weights are the artifact's."""
        engine = _import_engine()
        provider = self._check_settings(engine, artifact)
        execution = self._execution(engine, provider, artifact)
        return OnnxRuntimeSession(self._load(artifact, graph), execution)

    def _check_settings(self, engine: ModuleType, artifact: Artifact) -> str:
        """The provider, which is present."""
        provider = self.settings.device or _DEFAULT_PROVIDER
        available = engine.get_available_providers()
        if provider not in available:
            raise BackendError(
                f"onnxruntime: got no execution provider {provider!r}, want one of those present: "
                f"{', '.join(available)}."
            )
        if self.settings.cache_dir is not None:
            raise UsageError("onnxruntime: got --cache-dir, but it keeps no cache. Leave it out.")
        if self.settings.precision not in (None, _declared(artifact)):
            raise UsageError(
                f"onnxruntime: got --precision {self.settings.precision}, but a graph runs in the "
                f"precision it was exported in: {_declared(artifact)}. Export it again."
            )
        return provider

    def _load(self, artifact: Artifact, graph: bytes | None) -> "onnxruntime.InferenceSession":
        engine = _import_engine()
        provider = self.settings.device or _DEFAULT_PROVIDER
        record = artifact.record
        options = self._options(engine, None if record is None else record.precision)
        if graph is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(artifact.path.parent.absolute()))
        try:
            session: onnxruntime.InferenceSession = engine.InferenceSession(
                graph or str(artifact.path),
                sess_options=options,
                providers=[provider],
                disabled_optimizers=self.disabled_optimizers or None,
            )
        except Exception as error:  # its exceptions share no base class
            raise BundleError(
                f"{artifact.path}: got {error}, want an ONNX graph that onnxruntime can load."
            ) from error
        if session.get_providers()[0] != provider:
            raise BackendError(
                f"onnxruntime: {provider} is present but could not start; it chose "
                f"{session.get_providers()[0]}. Check the provider's driver and libraries."
            )
        return session

    def probe(self) -> Probe:
        """Version and execution providers."""
        try:
            engine = _import_engine()
        except MissingDependencyError as error:
            return absent_probe(self.name, error)
        providers = tuple(engine.get_available_providers())
        precision = {
            provider: "float32, TF32 off" if "CUDA" in provider else "float32"
            for provider in providers
            if provider.startswith(("CPU", "CUDA"))
        }
        return Probe(
            runtime=self.name,
            installed=True,
            versions=_versions(),
            devices=providers,
            precision=precision,
            remedy="",
        )

    def _options(
        self, engine: ModuleType, precision: Precision | None
    ) -> "onnxruntime.SessionOptions":
        options = engine.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings concern its own graph rewriting
        level = _LEVELS[self.graph_optimization]
        options.graph_optimization_level = getattr(engine.GraphOptimizationLevel, level)
        if self.settings.low_memory:
            options.enable_cpu_mem_arena = False
        if self.settings.map_weights and precision is not None and not is_compressed(precision):
            options.add_session_config_entry(_NO_PREPACKING, "1")
        if self.settings.num_threads is not None:
            options.intra_op_num_threads = self.settings.num_threads
        return options

    def _execution(self, engine: ModuleType, provider: str, artifact: Artifact) -> Execution:
        threads = self.settings.num_threads
        return Execution(
            runtime=self.name,
            version=engine.__version__,
            device=provider,
            precision=_declared(artifact),
            details={
                "threads": str(threads) if threads else "one for each physical core",
                "graph_optimization": _optimization_text(
                    self.graph_optimization, self.disabled_optimizers
                ),
            },
        )


def make_runtime(settings: RuntimeSettings) -> OnnxRuntime:
    """ONNX Runtime with these settings."""
    return OnnxRuntime(settings=settings)


def _import_engine() -> ModuleType:
    return import_optional("onnxruntime", extra="onnxruntime")


def _versions() -> dict[str, str]:
    """The installed builds: onnxruntime, onnxruntime-gpu, onnxruntime-openvino and so on."""
    found = (dist.metadata["Name"] for dist in importlib.metadata.distributions())
    return {
        name: importlib.metadata.version(name)
        for name in sorted({name for name in found if name and _DISTRIBUTION.match(name)})
    }


def _optimization_text(level: GraphOptimization, disabled: Sequence[str]) -> str:
    return f"{level} but {', '.join(disabled)}" if disabled else level


def _declared(artifact: Artifact) -> str:
    return artifact.record.precision if artifact.record else "as the graph declares"


def _ports(nodes: "Sequence[onnxruntime.NodeArg]") -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=node.name,
            dtype=_DTYPES.get(node.type, node.type),
            shape=tuple("?" if axis is None else axis for axis in node.shape),
        )
        for node in nodes
    )
