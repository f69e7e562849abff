"""OpenVINO: runs its own graphs and ONNX ones, in float32 unless another precision is asked for.

Left to itself, OpenVINO computes in bfloat16 or float16 wherever the device can. Here it is told
what to compute in, and asked afterwards what every node of the compiled network runs in.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, final

from triptych.bundle.bundle import Artifact
from triptych.dependencies import import_optional
from triptych.errors import BackendError, MissingDependencyError, UsageError
from triptych.models.precisions import ROUNDS_ACTIVATIONS
from triptych.runtimes._openvino_arithmetic import (
    HINTS,
    KINDS,
    arithmetics,
    default_arithmetic,
    node_precisions,
    property_text,
)
from triptych.runtimes._openvino_graph import (
    own_precision,
    port_specs,
    read_model,
    rounded_activations,
    static_shapes,
)
from triptych.runtimes._openvino_parts import open_parts
from triptych.runtimes._parts import PartsSession
from triptych.runtimes.base import Execution, Probe, RuntimeSettings, absent_probe
from triptych.types import PRECISIONS, Array, FormatName, Precision, TensorMap

if TYPE_CHECKING:
    import openvino

_DEFAULT_DEVICE = "CPU"
_DISTRIBUTIONS = ("openvino", "openvino-genai", "openvino-tokenizers")


@final
class OpenVinoSession:
    """One compiled network and one request on it."""

    def __init__(
        self, compiled: "openvino.CompiledModel", *, artifact: Artifact, execution: Execution
    ) -> None:
        self._request: openvino.InferRequest | None = compiled.create_infer_request()
        self.execution = execution
        bindings = artifact.bindings
        self.inputs = port_specs(compiled.inputs, bindings.inputs)
        self.outputs = port_specs(compiled.outputs, bindings.outputs)

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs; the engine copies what it takes and gives."""
        if self._request is None:
            raise BackendError("openvino: got a run on a closed session. Open it again.")
        try:
            results = self._request.infer(dict(feed))
        except RuntimeError as error:
            raise BackendError(f"openvino: could not run the network. {error}") from error
        return {name: results[name] for name in outputs}

    def close(self) -> None:
        """Release the engine's memory."""
        self._request = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVino:
    """OpenVINO on one device.

    Attributes:
        settings: `device` is OpenVINO's name of one; `precision` what every component computes
            in: fp32, or a graph's own bfloat16, unless asked otherwise; `cache_dir` keeps compiled
            networks, without weights.
        force_precision: tell the engine what to compute in. False leaves it at its own default,
            which many users run unknowingly: a check of fp32 then fails where that is bf16.
        static_axes: lengths for axes of the spec, such as batch, height and width, for devices
            that cannot compile dynamic ones. Batches of components differ, so a runtime with a
            static batch serves one component.
        properties: OpenVINO's own, by name; they have the last word. To see what one switch does.
    """

    settings: RuntimeSettings
    force_precision: bool = True
    static_axes: Mapping[str, int] = field(default_factory=dict)
    properties: Mapping[str, str | int] = field(default_factory=dict)
    name: str = "openvino"
    formats: tuple[FormatName, ...] = ("openvino", "onnx")

    def open(self, artifact: Artifact) -> OpenVinoSession | PartsSession:
        """Compile a network for the device and ask what it runs in.

        An absent device, or a precision that the device replaces by another, is an error. With
        little memory nothing is compiled before it is run.
        """
        engine = _import_engine()
        model = self.read(artifact)
        if self.settings.low_memory:
            return self._open_in_parts(engine, model, artifact)
        compiled = self.compile(model, artifact)
        rounded = rounded_activations(model)
        asked = self.settings.precision
        execution = self._execution(
            engine,
            compiled,
            self.settings.device or _DEFAULT_DEVICE,
            rounded=rounded,
            own=own_precision(model),
        )
        # Where activations are rounded, that is what an execution says.
        is_other = asked is not None and execution.precision not in (asked, rounded)
        if self.force_precision and is_other:
            raise BackendError(
                f"openvino: got {execution.precision} from {execution.device}, want {asked} as "
                "asked for. The device or the graph does not compute in it: leave --precision out."
            )
        return OpenVinoSession(compiled, artifact=artifact, execution=execution)

    def _open_in_parts(
        self, engine: ModuleType, model: "openvino.Model", artifact: Artifact
    ) -> PartsSession:
        execution = Execution(
            runtime=self.name,
            version=engine.__version__.partition("-")[0],
            device=self.settings.device or _DEFAULT_DEVICE,
            precision=self.settings.precision or own_precision(model),
            details={"low_memory": "part by part; what nodes ran in was not read back"},
        )
        rounded = rounded_activations(model)

        def compile_part(part: "openvino.Model") -> "openvino.CompiledModel":
            if rounded:
                part.set_rt_info(str(rounded), list(ROUNDS_ACTIVATIONS))
            return self.compile(part, artifact)

        bindings = artifact.bindings
        return open_parts(
            model,
            compile_part=compile_part,
            ports=(
                port_specs(model.inputs, bindings.inputs),
                port_specs(model.outputs, bindings.outputs),
            ),
            execution=execution,
        )

    def read(self, artifact: Artifact) -> "openvino.Model":
        """An artifact's network as it is compiled."""
        model = read_model(artifact)
        if self.static_axes:
            model.reshape(static_shapes(artifact, self.static_axes))
        return model

    def compile(self, model: "openvino.Model", artifact: Artifact) -> "openvino.CompiledModel":
        """Compile a network that was made from an artifact's; an absent device is an error."""
        core = _import_engine().Core()
        device = self.settings.device or _DEFAULT_DEVICE
        if device not in core.available_devices:
            raise BackendError(
                f"openvino: got no device {device!r}, want one of those present: "
                f"{', '.join(core.available_devices)}."
            )
        config = self._config(core, device, model, artifact)
        try:
            return core.compile_model(model, device, config)
        except RuntimeError as error:
            raise BackendError(
                f"{artifact.path}: {device} could not compile it. {error}"
            ) from error

    def probe(self) -> Probe:
        """Version, devices, and what each would compute in if nobody told it."""
        try:
            engine = _import_engine()
        except MissingDependencyError as error:
            return absent_probe(self.name, error)
        core = engine.Core()
        return Probe(
            runtime=self.name,
            installed=True,
            versions=_versions(),
            devices=tuple(core.available_devices),
            precision={
                device: default_arithmetic(core, device) for device in core.available_devices
            },
            remedy="",
            arithmetic={device: arithmetics(core, device) for device in core.available_devices},
        )

    def _config(
        self, core: "openvino.Core", device: str, model: "openvino.Model", artifact: Artifact
    ) -> dict[str, object]:
        settings = self.settings
        rounded = rounded_activations(model)
        supported = core.get_property(device, "SUPPORTED_PROPERTIES")
        if settings.precision is not None and settings.precision not in HINTS:
            raise UsageError(
                f"openvino: got --precision {settings.precision}, want fp32, fp16 or bf16: what it "
                f"computes in. {settings.precision} is how an export stores weights."
            )
        config: dict[str, object] = {}
        if self.force_precision:
            config["INFERENCE_PRECISION_HINT"] = HINTS[settings.precision or "fp32"]
            if "DYNAMIC_QUANTIZATION_GROUP_SIZE" in supported and rounded != "int8-dynamic":
                # else activations beside int8 weights are rounded to int8, unasked
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        is_bf16 = "bf16" in (settings.precision, own_precision(model))
        has_fixed_shapes = settings.low_memory or not model.is_dynamic()
        if device == "CPU" and is_bf16 and has_fixed_shapes:
            config["SNIPPETS_MODE"] = "DISABLE"  # 2026.4 fuses such networks into wrong kernels
        if settings.num_threads is not None:
            config["INFERENCE_NUM_THREADS"] = settings.num_threads
        if settings.cache_dir is not None:
            if artifact.format != "openvino":  # 2026.4 would write, and never read back
                raise UsageError(
                    f"openvino: got --cache-dir for a graph in {artifact.format} format, want one "
                    "in openvino format: it keeps no cache of others. Leave it out."
                )
            config["CACHE_DIR"] = str(settings.cache_dir)
            config["CACHE_MODE"] = "OPTIMIZE_SIZE"
            if "WEIGHTS_PATH" in supported:  # where a kept network finds its weights again
                config["WEIGHTS_PATH"] = str(artifact.path.with_suffix(".bin"))
        return {**config, **self.properties}

    def _execution(
        self,
        engine: ModuleType,
        compiled: "openvino.CompiledModel",
        device: str,
        *,
        rounded: Precision | None,
        own: Precision,
    ) -> Execution:
        group_size = property_text(compiled, "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        nodes = node_precisions(compiled, rounds_activations=group_size not in ("0", ""))
        if rounded == "hybrid" and "int8-dynamic" in nodes:
            nodes["hybrid"] = nodes.pop("int8-dynamic")
        hint = property_text(compiled, "INFERENCE_PRECISION_HINT")
        execution_mode = property_text(compiled, "EXECUTION_MODE_HINT")
        ran = max(nodes, key=PRECISIONS.index) if nodes else KINDS.get(hint, hint or "unknown")
        if own == "bf16" and ran == "fp32":  # a device without bfloat16 widens
            own = "fp32"
        threads = self.settings.num_threads
        return Execution(
            runtime=self.name,
            version=engine.__version__.partition("-")[0],
            device=device,
            precision=ran,
            declared_precision=(rounded or self.settings.precision or own) if nodes else None,
            details={
                "inference_precision_hint": hint,
                "dynamic_quantization_group_size": group_size,
                "execution_mode_hint": execution_mode.rpartition(".")[2],
                "nodes": ", ".join(f"{count} {name}" for name, count in sorted(nodes.items())),
                "threads": str(threads) if threads else "the engine's choice",
                "loaded_from_cache": property_text(compiled, "LOADED_FROM_CACHE").lower(),
            },
        )


def make_runtime(settings: RuntimeSettings) -> OpenVino:
    """OpenVINO with these settings."""
    return OpenVino(settings=settings)


def _import_engine() -> ModuleType:
    return import_optional("openvino", extra="openvino")


def _versions() -> dict[str, str]:
    installed = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS if name in installed}
