"""OpenVINO: runs its own graphs and ONNX ones, in float32 unless another precision is asked for.

Left to itself, OpenVINO computes in bfloat16 or float16 wherever the device can. Here it is told
what to compute in, and asked afterwards what every node of the compiled network runs in.
"""

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, final

from triptych.bundle.bundle import Artifact
from triptych.dependencies import import_optional
from triptych.errors import BackendError, BundleError, MissingDependencyError, UsageError
from triptych.models.precisions import ROUNDS_ACTIVATIONS
from triptych.runtimes._openvino_parts import open_parts
from triptych.runtimes._parts import PartsSession
from triptych.runtimes.base import Execution, Probe, RuntimeSettings, absent_probe
from triptych.tensors import TensorSpec, axis_length
from triptych.types import PRECISIONS, Array, FormatName, Precision, TensorMap

if TYPE_CHECKING:
    import openvino

_DEFAULT_DEVICE = "CPU"
_HINTS: Mapping[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_KINDS: Mapping[str, Precision] = {
    **{hint: precision for precision, hint in _HINTS.items()},
    "i8": "int8-dynamic",
    "u8": "int8-dynamic",
}
_NO_ARITHMETIC = {
    "Broadcast", "Concatenation", "Const", "Convert", "Gather", "Input", "Output", "Reorder",
    "Reshape", "ShapeOf", "Split", "StridedSlice", "Transpose",
}  # fmt: skip
"""Layers of a compiled network that only move or widen numbers: what they run in rounds nothing
that was not rounded before or is not after."""

_AXES = ("batch", "height", "width")
"""The axes of SDXL's tensors that are not fixed; height and width are the latents'."""

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
        self.inputs = _ports(compiled.inputs, {tensor.artifact_name for tensor in bindings.inputs})
        self.outputs = _ports(
            compiled.outputs, {tensor.artifact_name for tensor in bindings.outputs}
        )

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
            own=_own_precision(model),
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
            precision=self.settings.precision or _own_precision(model),
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
                _ports(model.inputs, {tensor.artifact_name for tensor in bindings.inputs}),
                _ports(model.outputs, {tensor.artifact_name for tensor in bindings.outputs}),
            ),
            execution=execution,
        )

    def read(self, artifact: Artifact) -> "openvino.Model":
        """An artifact's network as it is compiled."""
        engine = _import_engine()
        model = _read(engine, engine.Core(), artifact)
        if self.static_axes:
            model.reshape(_static_shapes(artifact, self.static_axes))
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
            precision={device: _default(core, device) for device in core.available_devices},
            remedy="",
            arithmetic={device: _arithmetic(core, device) for device in core.available_devices},
        )

    def _config(
        self, core: "openvino.Core", device: str, model: "openvino.Model", artifact: Artifact
    ) -> dict[str, object]:
        settings = self.settings
        rounded = rounded_activations(model)
        supported = core.get_property(device, "SUPPORTED_PROPERTIES")
        if settings.precision is not None and settings.precision not in _HINTS:
            raise UsageError(
                f"openvino: got --precision {settings.precision}, want fp32, fp16 or bf16: what it "
                f"computes in. {settings.precision} is how an export stores weights."
            )
        config: dict[str, object] = {}
        if self.force_precision:
            config["INFERENCE_PRECISION_HINT"] = _HINTS[settings.precision or "fp32"]
            if "DYNAMIC_QUANTIZATION_GROUP_SIZE" in supported and rounded != "int8-dynamic":
                # else activations beside int8 weights are rounded to int8, unasked
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        is_bf16 = "bf16" in (settings.precision, _own_precision(model))
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
        group_size = _property(compiled, "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        nodes = _node_precisions(compiled, rounds_activations=group_size not in ("0", ""))
        if rounded == "hybrid" and "int8-dynamic" in nodes:
            nodes["hybrid"] = nodes.pop("int8-dynamic")
        hint = _property(compiled, "INFERENCE_PRECISION_HINT")
        ran = max(nodes, key=PRECISIONS.index) if nodes else _KINDS.get(hint, hint or "unknown")
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
                "execution_mode_hint": _property(compiled, "EXECUTION_MODE_HINT").rpartition(".")[
                    2
                ],
                "nodes": ", ".join(f"{count} {name}" for name, count in sorted(nodes.items())),
                "threads": str(threads) if threads else "the engine's choice",
                "loaded_from_cache": _property(compiled, "LOADED_FROM_CACHE").lower(),
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


def _default(core: "openvino.Core", device: str) -> str:
    try:
        default = core.get_property(device, "INFERENCE_PRECISION_HINT").to_string()
    except RuntimeError:  # devices such as AUTO have no arithmetic of their own
        return "not told by the device; triptych sets float32"
    return f"{default} by default; triptych sets float32"


def _arithmetic(core: "openvino.Core", device: str) -> tuple[str, ...]:
    try:
        found = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError:  # as above
        return ()
    return tuple(name for name in found if name[:2] in ("FP", "BF", "IN"))


def _read(engine: ModuleType, core: "openvino.Core", artifact: Artifact) -> "openvino.Model":
    try:
        model = core.read_model(artifact.path)
    except RuntimeError as error:
        raise BundleError(
            f"{artifact.path}: got {error}, want a network that OpenVINO can read, in full."
        ) from error
    _keep_fractions(engine, model)
    return model


def rounded_activations(model: "openvino.Model") -> Precision | None:
    """What a graph says of activations: rounded as they come, or by a calibration; None for not."""
    mark = list(ROUNDS_ACTIVATIONS)
    if model.has_rt_info(mark) and str(model.get_rt_info(mark).astype(str)) != "0":
        return "int8-dynamic"
    calibrated = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    return "hybrid" if calibrated else None


def _own_precision(model: "openvino.Model") -> Precision:
    """What a graph computes in where nothing else is asked for."""
    is_bfloat16 = any(
        node.get_type_name() != "Constant"
        and any(port.get_element_type().get_type_name() == "bf16" for port in node.outputs())
        for node in model.get_ops()
    )
    return "bf16" if is_bfloat16 else "fp32"


def _keep_fractions(engine: ModuleType, model: "openvino.Model") -> None:
    """Take the timestep as float32 where the graph takes an integer and then converts it.

    optimum-intel's graphs do, and GenAI wants them to; several schedules have steps between two
    integers.
    """
    for port in model.inputs:
        readers = [reader.get_node().get_type_name() for reader in port.get_target_inputs()]
        if (
            "timestep" in port.get_names()
            and port.get_element_type().is_integral_number()
            and set(readers) <= {"Broadcast", "Convert"}
        ):
            port.get_node().set_element_type(engine.Type.f32)
            model.validate_nodes_and_infer_types()


def _static_shapes(artifact: Artifact, axes: Mapping[str, int]) -> dict[str, list[int]]:
    unknown = set(axes) - set(_AXES)
    if unknown:
        raise UsageError(
            f"openvino: got static axes {', '.join(sorted(unknown))}, want {', '.join(_AXES)}."
        )
    shapes = {}
    for spec, binding in zip(artifact.spec.inputs, artifact.bindings.inputs, strict=True):
        lengths = [axis_length(axis, axes) for axis in spec.shape]
        shapes[binding.artifact_name] = [-1 if size is None else size for size in lengths] or [1]
    return shapes


def _node_precisions(
    compiled: "openvino.CompiledModel", *, rounds_activations: bool
) -> Counter[Precision]:
    """How many nodes of the compiled network compute in what; integer shape sums do not count."""
    found = Counter[Precision]()
    try:
        network = compiled.get_runtime_model()
    except RuntimeError:  # not every device shows what it made of the graph
        return found
    for node in network.get_ops():
        facts = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        kind = facts.get("runtimePrecision", "")
        if facts.get("layerType") in _NO_ARITHMETIC:
            continue
        # How it computes ends the kernel's name: "brgemm_avx512_f32".
        kernel = facts.get("primitiveType", "").rpartition("_")[2].lower()
        tells_weights = kind in ("i8", "u8") and not rounds_activations
        if kind == "dynamic" or tells_weights or (kind == "f16" and kernel in _KINDS):
            kind = kernel
        if kind in _KINDS:
            found[_KINDS[kind]] += 1
    return found


def _property(compiled: "openvino.CompiledModel", name: str) -> str:
    try:
        value = compiled.get_property(name)
    except RuntimeError:  # not every device has it
        return ""
    return value.to_string() if hasattr(value, "to_string") else str(value)


def _ports(
    ports: "Sequence[openvino.ConstOutput | openvino.Output]", wanted: set[str]
) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=next((name for name in sorted(port.get_names()) if name in wanted), "")
            or port.get_any_name(),
            dtype=port.get_element_type().to_dtype().name,
            shape=tuple(
                axis.get_length() if axis.is_static else "?" for axis in port.get_partial_shape()
            ),
        )
        for port in ports
    )
