"""A runtime whose sessions stay open, for many runs of one model in one process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import final

from triptych.bundle.bundle import Artifact
from triptych.runtimes.base import Execution, Probe, Runtime, Session
from triptych.tensors import TensorSpec
from triptych.types import Array, FormatName, TensorMap


@contextmanager
def kept_open(runtime: Runtime) -> Iterator["KeptOpen"]:
    """A runtime that opens each artifact once, whoever closes it; all are closed at the end.

    What `prepare`, `denoise` and `decode` open for one run alone stays for the next. It costs the
    memory of all components together.
    """
    with ExitStack() as stack:
        yield KeptOpen(runtime, stack)


@final
class KeptOpen:
    """Another runtime, with its sessions kept. Made by `kept_open`."""

    def __init__(self, runtime: Runtime, stack: ExitStack) -> None:
        self._runtime = runtime
        self._stack = stack
        self._sessions: dict[tuple[Path, tuple[str, ...]], Session] = {}

    @property
    def name(self) -> str:
        """The engine's."""
        return self._runtime.name

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """The engine's."""
        return self._runtime.formats

    def open(self, artifact: Artifact) -> "Lent":
        """Open it, or lend what is open already."""
        asked = tuple(binding.artifact_name for binding in artifact.bindings.outputs)
        key = (artifact.path, asked)
        if key not in self._sessions:
            session = self._runtime.open(artifact)
            self._stack.callback(session.close)
            self._sessions[key] = session
        return Lent(self._sessions[key])

    def probe(self) -> Probe:
        """The engine's."""
        return self._runtime.probe()


@final
class Lent:
    """A session whose close is left to its owner."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The session's."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The session's."""
        return self._session.outputs

    @property
    def execution(self) -> Execution:
        """The session's."""
        return self._session.execution

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """The session's."""
        return self._session.run(feed, outputs)

    def close(self) -> None:
        """Leave it open."""
