"""The parent's side of exporting: processes that do one component after another."""

import contextlib
import os
import subprocess
import sys
import threading
from io import TextIOWrapper
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, final

import msgspec

from triptych.bundle.manifest import ComponentRecord
from triptych.errors import (
    BackendError,
    BrokenInputError,
    TriptychError,
    UsageError,
    VerificationError,
)
from triptych.exporters.base import ExportReporter
from triptych.workflows.export_process import ExportJob, Message

_ERRORS: dict[int, type[TriptychError]] = {
    1: VerificationError,
    2: UsageError,
    3: BrokenInputError,
    4: BackendError,
}
_TOLD_LINES = 20


@final
class ExportWorkers:
    """Processes to export in, each in use by one thread at a time.

    A process gives its memory back for certain when it ends, and a crash in a converter ends one
    component, not the caller. Importing frameworks takes longer than exporting a small network, so
    a process goes on with the next job unless the caller wants its memory back, or it failed.
    """

    def __init__(self, *, num_threads: int = 1) -> None:
        """Each process computes in so many threads, unless OMP_NUM_THREADS is set."""
        self._num_threads = num_threads
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._is_stopped = False
        self._lock = threading.Lock()

    def run(self, job: ExportJob, *, keep: bool, report: ExportReporter) -> ComponentRecord:
        """Export one component and wait for it.

        Args:
            job: what to export.
            keep: use the process again; False ends it afterwards.
            report: told how far it is.

        Raises:
            TriptychError: what the process raised, of the class with its exit code; BackendError
                when it ended without a word.
        """
        report("starting", 0.0)
        worker = self._take()
        try:
            record = worker.run(job, report=report)
        except BaseException:
            self._release(worker, keep=False)
            raise
        self._release(worker, keep=keep)
        return record

    def stop(self) -> None:
        """End every process, whatever it is doing, and begin no other; from any thread."""
        with self._lock:
            self._is_stopped = True
            for worker in self._busy:
                worker.kill()

    def _take(self) -> "_Worker":
        with self._lock:
            if self._is_stopped:
                raise BackendError("export: got a component after it was stopped.")
            worker = self._idle.pop() if self._idle else _Worker(num_threads=self._num_threads)
            self._busy.add(worker)
        return worker

    def _release(self, worker: "_Worker", *, keep: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            if keep and not self._is_stopped:
                self._idle.append(worker)
                return
        worker.close()

    def __enter__(self) -> "ExportWorkers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._idle:
            worker.close()
        self._idle.clear()


@final
class _Worker:
    """One process; its talk goes to a file, so that nothing has to listen to it."""

    def __init__(self, *, num_threads: int) -> None:
        self._talk: IO[bytes] = TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "triptych.workflows.export_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            text=True,
            encoding="utf-8",
            env={"OMP_NUM_THREADS": str(num_threads), **os.environ},
        )

    def run(self, job: ExportJob, *, report: ExportReporter) -> ComponentRecord:
        """Send a job and follow it to its end."""
        stdin, stdout = self._pipes()
        with contextlib.suppress(BrokenPipeError):  # it is gone already; below says how it ended
            stdin.write(msgspec.json.encode(job).decode() + "\n")
            stdin.flush()
        for line in stdout:
            message = msgspec.json.decode(line, type=Message)
            if message.record is not None:
                return message.record
            if message.error:
                raise _ERRORS.get(message.exit_code, TriptychError)(message.error)
            report(message.stage, message.fraction)
        raise BackendError(f"{job.component}: the export process {self._ending()}")

    def kill(self) -> None:
        """End the process; whoever follows it finds out."""
        self._process.kill()

    def close(self) -> None:
        """End the process, whatever it is doing, and forget it."""
        self._process.kill()
        self._process.wait()
        for stream in (*self._pipes(), self._talk):
            with contextlib.suppress(OSError):
                stream.close()

    def _pipes(self) -> tuple[TextIOWrapper, TextIOWrapper]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if not (isinstance(stdin, TextIOWrapper) and isinstance(stdout, TextIOWrapper)):
            raise BackendError("export process: got no pipes, want two.")
        return stdin, stdout

    def _ending(self) -> str:
        code = self._process.wait()
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = " Most often the machine ran out of memory." if code == -9 else ""
        self._talk.seek(0)
        lines = self._talk.read().decode(errors="replace").splitlines(keepends=True)
        return f"ended with {ending}.{hint}\n{''.join(lines[-_TOLD_LINES:])}"
