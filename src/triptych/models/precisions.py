"""Which precision each format has: how weights are stored, what computes, who compresses them.

One word means one thing everywhere. The table is what `triptych precisions` prints and what the
exporters refuse by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError
from triptych.types import PRECISIONS, FormatName, Precision

ONNX_BLOCK = 128
"""Weights of an ONNX matrix that share a scale at 8 bits: the most that MatMulNBits computes
quickly with."""

ONNX_BLOCK_INT4 = 32
"""At 4 bits, where a scale's range counts for more: what onnxruntime-genai takes."""

OPENVINO_GROUP = 64
"""Weights of an OpenVINO matrix that share a scale at 4 bits: it divides every width of SDXL."""

ACTIVATION_GROUP = 32
"""Activations that share a scale in OpenVINO's int8-dynamic: what its CPU takes by itself."""

ROUNDS_ACTIVATIONS = ("runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
"""Where an OpenVINO graph says that activations are rounded, and how many share a scale. The engine
reads it itself, so that every client of it does the same."""

COREML_BLOCK = 32
"""Weights of a Core ML matrix that share a scale at 4 bits: coremltools' default."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSupport:
    """What one precision is in one format.

    Attributes:
        exported: whether `--precision`, or `--palettize-bits` for palettes, takes it.
        stored: how weights lie in the file.
        computed: what they are multiplied in.
        library: what compresses or converts them.
        extra: the extra of triptych that exports it; empty where nothing is exported.
        runs_on: where it runs.
        remark: why there is none and what to do instead; or what to know.
    """

    exported: bool
    stored: str = ""
    computed: str = ""
    library: str = ""
    extra: str = ""
    runs_on: str = ""
    remark: str = ""


def _none(remark: str) -> PrecisionSupport:
    return PrecisionSupport(exported=False, remark=remark)


_AT_RUN_TIME = _none("the checkpoint as it is; computed so at run time: --precision")
_NOT_OF_A_CHECKPOINT = _none("PyTorch is the reference: it is not compressed")
_PALETTES_ARE_APPLES = _none("palettes are Core ML's")

_DIFFUSERS: Mapping[Precision, PrecisionSupport] = {
    precision: _AT_RUN_TIME if precision in ("fp32", "fp16", "bf16") else _NOT_OF_A_CHECKPOINT
    for precision in PRECISIONS
}

_ONNX: Mapping[Precision, PrecisionSupport] = {
    **{name: _PALETTES_ARE_APPLES for name in PRECISIONS if name.startswith("palette")},
    "fp32": PrecisionSupport(
        exported=True,
        stored="float32",
        computed="float32",
        library="torch.onnx",
        extra="export",
        runs_on="every execution provider, and OpenVINO",
    ),
    "fp16": PrecisionSupport(
        exported=True,
        stored="float16",
        computed="float16",
        library="torch.onnx",
        extra="export",
        runs_on="every execution provider, and OpenVINO",
        remark="ONNX Runtime's CPU widens what it has no float16 kernel for",
    ),
    "bf16": _none("ONNX Runtime's CPU has no bfloat16 kernels for SDXL's operators"),
    "int8": PrecisionSupport(
        exported=True,
        stored=f"8 bits: matrices a scale for {ONNX_BLOCK} weights, convolutions and embeddings a "
        "scale a channel",
        computed="float32",
        library="ONNX Runtime's quantiser (MatMulNBits, DequantizeLinear)",
        extra="export",
        runs_on="ONNX Runtime",
    ),
    "int8-dynamic": PrecisionSupport(
        exported=True,
        stored="8 bits, a scale a channel; those of matrices use 7, so that no processor overflows",
        computed="int8 in matrices, float32 in convolutions",
        library="triptych, as ONNX Runtime's quantize_dynamic (MatMulInteger)",
        extra="export",
        runs_on="ONNX Runtime",
    ),
    "hybrid": _none("static activations are NNCF's, for OpenVINO; int8-dynamic is the nearest"),
    "int4": PrecisionSupport(
        exported=True,
        stored=f"matrices 4 bits, a scale for {ONNX_BLOCK_INT4} weights; the rest as int8",
        computed="float32",
        library="ONNX Runtime's quantiser (MatMulNBits, DequantizeLinear)",
        extra="export",
        runs_on="ONNX Runtime",
    ),
}

_OPENVINO: Mapping[Precision, PrecisionSupport] = {
    **{name: _PALETTES_ARE_APPLES for name in PRECISIONS if name.startswith("palette")},
    "fp32": PrecisionSupport(
        exported=True,
        stored="float32",
        computed="float32, or what --precision asks for at run time",
        library="OpenVINO",
        extra="export",
        runs_on="every device",
    ),
    "fp16": PrecisionSupport(
        exported=True,
        stored="float16",
        computed="float32, or what --precision asks for at run time",
        library="OpenVINO",
        extra="export",
        runs_on="every device",
    ),
    "bf16": PrecisionSupport(
        exported=True,
        stored="bfloat16",
        computed="bfloat16, sinusoids float32; float32 where a device has no bfloat16",
        library="OpenVINO",
        extra="export",
        runs_on="every device",
    ),
    "int8": PrecisionSupport(
        exported=True,
        stored="8 bits, a scale and a zero point a channel",
        computed="float32, or what --precision asks for at run time",
        library="NNCF (INT8_ASYM)",
        extra="export",
        runs_on="every device",
    ),
    "int8-dynamic": PrecisionSupport(
        exported=True,
        stored="as int8",
        computed=f"int8 in matrices, a scale for {ACTIVATION_GROUP} activations; else float32",
        library="NNCF (INT8_ASYM), and a mark that OpenVINO reads",
        extra="export",
        runs_on="CPUs with AVX2 or later",
    ),
    "hybrid": PrecisionSupport(
        exported=True,
        stored="as int8",
        computed="the U-Net's convolutions and attention scores in int8; else float32",
        library="NNCF (INT8_ASYM, then quantize)",
        extra="export",
        runs_on="CPUs and GPUs",
        remark="--calibrate PROMPTS",
    ),
    "int4": PrecisionSupport(
        exported=True,
        stored=f"matrices 4 bits, a scale and a zero point for {OPENVINO_GROUP} weights or fewer; "
        "the rest as int8",
        computed="float32, or what --precision asks for at run time",
        library="NNCF (INT4_ASYM)",
        extra="export",
        runs_on="every device",
    ),
}

_COREML: Mapping[Precision, PrecisionSupport] = {
    **{
        name: PrecisionSupport(
            exported=True,
            stored=f"indices of {name.removeprefix('palette')} bits into a palette; not the VAE's",
            computed="what --precision says: float32 or float16",
            library="coremltools (k-means)",
            extra="export,coreml",
            runs_on="macOS 13, iOS 16 and later",
            remark=f"--palettize-bits {name.removeprefix('palette')}",
        )
        for name in PRECISIONS
        if name.startswith("palette")
    },
    "fp32": PrecisionSupport(
        exported=True,
        stored="float32",
        computed="float32",
        library="coremltools",
        extra="export,coreml",
        runs_on="CPU and GPU",
    ),
    "fp16": PrecisionSupport(
        exported=True,
        stored="float16",
        computed="float16, sinusoids float32",
        library="coremltools",
        extra="export,coreml",
        runs_on="CPU, GPU and Neural Engine",
    ),
    "bf16": _none("Core ML has no bfloat16"),
    "int8": PrecisionSupport(
        exported=True,
        stored="8 bits, a scale and a zero point a channel",
        computed="float16, sinusoids float32",
        library="coremltools (linear_quantize_weights)",
        extra="export,coreml",
        runs_on="CPU, GPU and Neural Engine; macOS 13, iOS 16 and later",
    ),
    "int8-dynamic": _none("Core ML rounds no activations by their extremes at run time"),
    "hybrid": _none("coremltools calibrates activations only on a Mac"),
    "int4": PrecisionSupport(
        exported=True,
        stored=f"4 bits, a scale for {COREML_BLOCK} weights; what no block divides as int8",
        computed="float16, sinusoids float32",
        library="coremltools (linear_quantize_weights)",
        extra="export,coreml",
        runs_on="CPU and GPU; macOS 15, iOS 18 and later",
        remark="--deployment-target macOS15 or iOS18",
    ),
}

PRECISION_TABLE: Mapping[FormatName, Mapping[Precision, PrecisionSupport]] = {
    "diffusers": _DIFFUSERS,
    "onnx": _ONNX,
    "openvino": _OPENVINO,
    "coreml": _COREML,
}
"""By format, every precision."""


def export_precisions(to: FormatName) -> tuple[Precision, ...]:
    """What `--precision` takes for a format."""
    return tuple(
        name
        for name in PRECISIONS
        if PRECISION_TABLE[to][name].exported and not name.startswith("palette")
    )


def check_export_precision(to: FormatName, precision: Precision) -> None:
    """Refuse what a format does not have.

    Raises:
        UsageError: it says why, and what there is.
    """
    known = export_precisions(to)
    if precision not in known:
        remark = PRECISION_TABLE[to][precision].remark
        raise UsageError(
            f"{to}: got precision {precision!r}, want one of {', '.join(known)}. "
            f"{remark[:1].upper()}{remark[1:]}."
        )


def stored_words(precision: Precision) -> tuple[Precision, ...]:
    """What most weights of a component can be where it was exported so.

    At 4 bits, embeddings and convolutions keep 8, and they can be most of a network. What rounds
    activations besides stores as int8 does.
    """
    if precision == "int4":
        return "int4", "int8"
    return ("int8",) if precision in ("int8-dynamic", "hybrid") else (precision,)


def is_compressed(precision: Precision) -> bool:
    """Whether weights lost so much that a bundle says what that costs."""
    return precision not in ("fp32", "fp16", "bf16")
