"""What OpenVINO's devices, and the networks compiled for them, say of their arithmetic."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from triptych.types import Precision

if TYPE_CHECKING:
    import openvino

HINTS: Mapping[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
KINDS: Mapping[str, Precision] = {
    **{hint: precision for precision, hint in HINTS.items()},
    "i8": "int8-dynamic",
    "u8": "int8-dynamic",
}
_NO_ARITHMETIC = {
    "Broadcast", "Concatenation", "Const", "Convert", "Gather", "Input", "Output", "Reorder",
    "Reshape", "ShapeOf", "Split", "StridedSlice", "Transpose",
}  # fmt: skip
"""Layers of a compiled network that only move or widen numbers: what they run in rounds nothing
that was not rounded before or is not after."""


def default_arithmetic(core: "openvino.Core", device: str) -> str:
    """What a device computes in unless it is told."""
    try:
        default = core.get_property(device, "INFERENCE_PRECISION_HINT").to_string()
    except RuntimeError:  # devices such as AUTO have no arithmetic of their own
        return "not told by the device; triptych sets float32"
    return f"{default} by default; triptych sets float32"


def arithmetics(core: "openvino.Core", device: str) -> tuple[str, ...]:
    """What a device is built to compute in."""
    try:
        found = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError:  # as above
        return ()
    return tuple(name for name in found if name[:2] in ("FP", "BF", "IN"))


def node_precisions(
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
        if kind == "dynamic" or tells_weights or (kind == "f16" and kernel in KINDS):
            kind = kernel
        if kind in KINDS:
            found[KINDS[kind]] += 1
    return found


def property_text(compiled: "openvino.CompiledModel", name: str) -> str:
    """A property of a compiled network; empty where its device does not have it."""
    try:
        value = compiled.get_property(name)
    except RuntimeError:  # not every device has it
        return ""
    return value.to_string() if hasattr(value, "to_string") else str(value)
