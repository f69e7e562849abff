"""What a machine is, as far as it changes numbers."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import triptych

CPU_FEATURES = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16"
)  # fmt: skip
"""Instruction sets that decide what engines compute in: with bf16 ones, some do so unasked."""

PACKAGES = (
    "numpy", "torch", "diffusers", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu",
    "openvino", "coremltools", "nncf", "optimum", "optimum-onnx", "optimum-intel",
)  # fmt: skip
"""Distributions that compute, or decide how is computed."""

_VARIABLES = re.compile(
    r"^(OMP_|MKL_|KMP_AFFINITY$|DNNL_|ONEDNN_|ORT_|OV_|OPENVINO_|OPENBLAS_|CUBLAS_|CUDNN_|TORCH_|PYTORCH_"
    r"|NVIDIA_TF32_OVERRIDE$|ATEN_CPU_CAPABILITY$|CUDA_LAUNCH_BLOCKING$|CUDA_VISIBLE_DEVICES$)"
)
"""Environment variables that engines read to decide how they compute."""

_PLACES = re.compile(r"HOME|PATH|DIR|CACHE|FILE")
"""Variables that say where things are, which changes no number and is nobody's business."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """A machine and what is installed on it.

    Attributes:
        system: operating system, its release, and the kind of processor.
        processor: the processor's own name, where the system tells.
        num_cpus: processors this process may use.
        cpu_features: instruction sets that matter here, where the system tells.
        python: the interpreter's version.
        triptych: its version.
        packages: versions of what is installed and computes.
        environment: variables that are set and that engines read.
    """

    system: str
    processor: str
    num_cpus: int
    cpu_features: tuple[str, ...]
    python: str
    triptych: str
    packages: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"{self.processor or self.system}, triptych {self.triptych}"


def take_fingerprint() -> Fingerprint:
    """This machine's. Nothing is imported to find out."""
    cpu = _cpu_facts()
    return Fingerprint(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=cpu.get("model name", "") or platform.processor(),
        num_cpus=num_cpus(),
        cpu_features=cpu_features(),
        python=platform.python_version(),
        triptych=triptych.__version__,
        packages=_versions(),
        environment={
            name: value
            for name, value in sorted(os.environ.items())
            if _VARIABLES.match(name) and not _PLACES.search(name)
        },
    )


def num_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cpu_features() -> tuple[str, ...]:
    """Those of `CPU_FEATURES` that are here, as far as Linux tells; other systems need a tool."""
    facts = _cpu_facts()
    present = set((facts.get("flags") or facts.get("Features") or "").split())
    return tuple(feature for feature in CPU_FEATURES if feature in present)


def _cpu_facts() -> dict[str, str]:
    """What Linux's /proc/cpuinfo says of the first processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return {}
    first = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
