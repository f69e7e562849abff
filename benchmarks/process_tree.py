"""Peak memory, time and bytes written of a command and every process that it starts. For Linux."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.workflows.process_memory import private_bytes, process_tree

POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: of wall time.
        peak_bytes: private (anonymous) memory of all its processes at one time: what the machine
            must have. What the system keeps of mapped files is not in it.
        written_bytes: handed to the system to be written.
        exit_code: 0 where all went well; negative where it was stopped.
        ending: why it was stopped, or its last words; empty where all went well.
    """

    seconds: float
    peak_bytes: int
    written_bytes: int
    exit_code: int
    ending: str


def measure(
    command: Sequence[str],
    *,
    log: Path,
    memory_limit_bytes: int,
    seconds_limit: float,
    environment: dict[str, str] | None = None,
) -> Measured:
    """Run a command to its end, or until it takes more memory or time than allowed."""
    started = time.perf_counter()
    peak, written, ending = 0, 0, ""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        while process.poll() is None:
            memory = private_bytes(process.pid) or 0
            peak = max(peak, memory)
            # A process counts for its children, too, once they have ended.
            written = max(written, sum(_written(pid) for pid in process_tree(process.pid)))
            seconds = time.perf_counter() - started
            if memory > memory_limit_bytes:
                ending = f"stopped at {memory / 2**30:.1f} GiB after {seconds:.0f} s"
            elif seconds > seconds_limit:
                ending = f"stopped after {seconds:.0f} s"
            if ending:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(POLL_SECONDS)
    if process.returncode and not ending:
        ending = "\n".join(log.read_text(errors="replace").splitlines()[-3:])
    return Measured(
        seconds=time.perf_counter() - started,
        peak_bytes=peak,
        written_bytes=written,
        exit_code=process.returncode,
        ending=ending,
    )


def _written(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar")), 0)
