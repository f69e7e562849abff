"""The parent's side of a benchmark: a process for each job, and its memory watched."""

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

import msgspec

from triptych.errors import (
    BackendError,
    BrokenInputError,
    CheckFailedError,
    TriptychError,
    UsageError,
)
from triptych.workflows.bench_process import BenchJob, Outcome
from triptych.workflows.process_memory import private_bytes

_ERRORS: dict[int, type[TriptychError]] = {
    1: CheckFailedError,
    2: UsageError,
    3: BrokenInputError,
    4: BackendError,
}
_POLL_SECONDS = 0.02
_TOLD_LINES = 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A job's outcome, and what its process took.

    Attributes:
        outcome: what it says.
        peak_bytes: private memory of the process and its own at most; None where the system does
            not tell.
    """

    outcome: Outcome
    peak_bytes: int | None


def run_job(job: BenchJob) -> Measured:
    """Do a job in a new process and wait for it.

    Raises:
        TriptychError: what the process raised, by its exit code; BackendError when it ended without
            a word.
    """
    with TemporaryDirectory(prefix="triptych-bench-") as scratch:
        outcome_file, talk_file = Path(scratch, "outcome.json"), Path(scratch, "talk.txt")
        with talk_file.open("wb") as talk:
            process = subprocess.Popen(  # noqa: S603  no shell, and no word that is not ours or a path
                _command(job, outcome_file),
                stdin=subprocess.PIPE,  # its end tells the process that we are gone
                stdout=talk,
                stderr=subprocess.STDOUT,
            )
            with process:
                peak_bytes = _watch(process)
        if not outcome_file.is_file():
            raise BackendError(
                f"{job.runtime}, {job.component or job.what}: the process ended with "
                f"{process.returncode}, want an outcome.\n{_ending(talk_file)}"
            )
        outcome = msgspec.json.decode(outcome_file.read_bytes(), type=Outcome)
    if outcome.error:
        raise _ERRORS.get(outcome.exit_code, TriptychError)(outcome.error)
    return Measured(outcome=outcome, peak_bytes=peak_bytes)


def _command(job: BenchJob, outcome_file: Path) -> list[str]:
    text = msgspec.json.encode(replace(job, started=time.time()), enc_hook=str).decode()
    return [sys.executable, "-m", "triptych.workflows.bench_process", text, str(outcome_file)]


def _watch(process: "subprocess.Popen[bytes]") -> int | None:
    """Wait for the end, which an interrupt brings about; the most memory seen."""
    peak: int | None = None
    try:
        while process.poll() is None:
            seen = private_bytes(process.pid)
            if seen is not None:
                peak = max(peak or 0, seen)
            time.sleep(_POLL_SECONDS)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return peak


def _ending(talk_file: Path) -> str:
    lines = talk_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TOLD_LINES:])
