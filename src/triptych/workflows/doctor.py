"""What this machine can run: engines, versions, devices, and what is missing."""

import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import triptych
from triptych.runtimes import make_runtime, runtime_names
from triptych.runtimes.base import Probe

_CPU_FEATURES = (
    "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16"
)  # fmt: skip
"""Instruction sets that decide what engines compute in: with bf16 ones, some do so unasked."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        triptych: its version.
        python: the interpreter's version.
        system: operating system and processor.
        num_cpus: processors this process may use.
        cpu_features: instruction sets that matter here, where the system tells.
        engines: one probe each.
    """

    triptych: str
    python: str
    system: str
    num_cpus: int
    cpu_features: tuple[str, ...]
    engines: tuple[Probe, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values for one JSON document."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Probe every engine; a missing one is a finding, not an error."""
    return Diagnosis(
        triptych=triptych.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        num_cpus=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        cpu_features=_cpu_features(),
        engines=tuple(make_runtime(name).probe() for name in runtime_names()),
    )


def _cpu_features() -> tuple[str, ...]:
    """Flags from Linux's /proc/cpuinfo; other systems do not tell without a tool."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return ()
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            present = set(value.split())
            return tuple(feature for feature in _CPU_FEATURES if feature in present)
    return ()
