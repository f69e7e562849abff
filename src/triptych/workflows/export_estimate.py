"""What an export will take of disk, memory and time, before it begins."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from triptych.errors import OutputError
from triptych.exporters import make_exporter
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import Checkpoint
from triptych.models.precisions import is_compressed
from triptych.models.sdxl import component_precision
from triptych.models.stored_tensor import DTYPE_BYTES
from triptych.types import ComponentName, FormatName, Precision

_STORED_BITS: Mapping[Precision, float] = {
    "fp32": 32, "fp16": 16, "bf16": 16, "int8": 9, "int8-dynamic": 9, "hybrid": 9, "int4": 5,
    "palette8": 9, "palette6": 7, "palette4": 5, "palette2": 3, "palette1": 2,
}  # fmt: skip
"""Bits of a weight in a bundle. Scales, palettes and what is left uncompressed count for one."""

_CHECKPOINT_DTYPES: Mapping[Precision, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What one format takes: rounded up from docs/benchmarks.md, in float16.

    In float32 OpenVINO takes 4.1 GiB of a full-size U-Net, more than is said here.

    Attributes:
        memory_bytes: private memory of exporting one component, whatever its size.
        memory_per_parameter: private bytes for each of its parameters besides.
        seconds_per_parameter: on two cores, with verification.
        graph_bytes: of a component on the disk, without weights.
    """

    memory_bytes: float
    memory_per_parameter: float
    seconds_per_parameter: float
    graph_bytes: float


_COSTS: Mapping[FormatName, _Cost] = {
    "onnx": _Cost(
        memory_bytes=1.5e9,
        memory_per_parameter=0.0,
        seconds_per_parameter=6e-8,
        graph_bytes=2e5,
    ),
    "openvino": _Cost(
        memory_bytes=1.8e9,
        memory_per_parameter=0.0,
        seconds_per_parameter=1.1e-7,
        graph_bytes=5e5,
    ),
    "coreml": _Cost(
        memory_bytes=1.0e9,
        memory_per_parameter=2.9,
        seconds_per_parameter=2.5e-7,
        graph_bytes=2e5,
    ),
}


_MEASURE_SECONDS = 4e-8
"""Of a step of the run that tells what compression costs, for each parameter of the U-Net: 6.9
minutes of 4 steps, on two cores, of 2.57e9."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportEstimate:
    """What an export will take, about.

    Attributes:
        disk_bytes: of the bundles.
        scratch_bytes: of files that are gone afterwards, at most at one time.
        memory_bytes: of the largest component, without what the system keeps of files.
        seconds: on two cores.
    """

    disk_bytes: int
    scratch_bytes: int
    memory_bytes: int
    seconds: float


def estimate_export(
    checkpoint: Checkpoint,
    components: Sequence[ComponentName],
    *,
    formats: Sequence[FormatName],
    settings: ExportSettings,
    measure_steps: int,
) -> ExportEstimate:
    """Add up what exporting components to formats takes. Only headers of weights are read.

    Args:
        checkpoint: what is exported.
        components: which of it.
        formats: each on its own.
        settings: precision, and what decides where weights lie.
        measure_steps: of the run that tells what compression costs, where there is any.
    """
    counts = {name: _num_parameters(checkpoint, name) for name in components}
    disk, scratch, memory, seconds = 0.0, 0.0, 0.0, 0.0
    for to in formats:
        exporter = make_exporter(to, settings)
        cost = _COSTS[to]
        for name, count in counts.items():
            stored = exporter.precision_of(name, checkpoint.config)
            size = count * _STORED_BITS[stored] / 8
            if settings.weights_in_place and stored in _CHECKPOINT_DTYPES:
                size = _bytes_elsewhere(checkpoint, name, _CHECKPOINT_DTYPES[stored])
            disk += size + cost.graph_bytes
            converted = _scratch_bytes(checkpoint, name, to=to, stored=stored)
            copied = size if to == "coreml" else 0  # coremltools writes a copy of its own first
            scratch = max(scratch, converted + copied)
            memory = max(memory, cost.memory_bytes + count * cost.memory_per_parameter)
            seconds += count * cost.seconds_per_parameter
            if name == "unet" and is_compressed(stored):
                seconds += count * measure_steps * _MEASURE_SECONDS
    return ExportEstimate(
        disk_bytes=int(disk), scratch_bytes=int(scratch), memory_bytes=int(memory), seconds=seconds
    )


def check_disk(estimate: ExportEstimate, output: Path) -> None:
    """Refuse an export that the disk cannot hold.

    Raises:
        OutputError: it cannot.
    """
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    needed = estimate.disk_bytes + estimate.scratch_bytes
    if free < needed:
        raise OutputError(
            f"{output}: got {_gigabytes(free)} free, want {_gigabytes(needed)}: "
            f"{_gigabytes(estimate.disk_bytes)} of bundles and "
            f"{_gigabytes(estimate.scratch_bytes)} while they are made. Export fewer formats or "
            "components at a time, to another disk, or in a smaller precision."
        )


def _num_parameters(checkpoint: Checkpoint, component: ComponentName) -> int:
    stored = checkpoint.stored_tensors(component).values()
    return sum(math.prod(tensor.shape) for tensor in stored)


def _scratch_bytes(
    checkpoint: Checkpoint, component: ComponentName, *, to: FormatName, stored: Precision
) -> int:
    """Of weights that are converted into files first: see `triptych.models.mapped`."""
    if to == "onnx":
        return 0
    precision = component_precision(component, checkpoint.config, stored)
    dtype = _CHECKPOINT_DTYPES.get(precision, "F32") if to == "openvino" else "F32"
    return _bytes_elsewhere(checkpoint, component, dtype)


def _bytes_elsewhere(checkpoint: Checkpoint, component: ComponentName, dtype: str) -> int:
    """Of the weights that do not lie in the checkpoint in a dtype as they are."""
    return sum(
        math.prod(tensor.shape) * DTYPE_BYTES[dtype]
        for tensor in checkpoint.stored_tensors(component).values()
        if tensor.dtype != dtype or not tensor.is_plain
    )


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3g} GB"
