"""An engine that lies: what a check must find, planted where no graph needs to be edited."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from triptych.bundle.bundle import Artifact
from triptych.runtimes.base import Execution, Probe, Runtime, Session
from triptych.tensors import TensorSpec
from triptych.types import Array, ComponentName, FormatName, TensorMap

Spoil: TypeAlias = Callable[[TensorMap, dict[str, Array]], dict[str, Array]]
"""Given a run's feed and its right outputs, the outputs that are handed out."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpoiltRuntime:
    """Another runtime, with the outputs of one component spoilt on their way out.

    Attributes:
        runtime: what really runs.
        component: whose outputs are spoilt.
        spoil: how; in the graph's own names.
    """

    runtime: Runtime
    component: ComponentName
    spoil: Spoil

    @property
    def name(self) -> str:
        """The engine's."""
        return self.runtime.name

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """The engine's."""
        return self.runtime.formats

    def open(self, artifact: Artifact) -> Session:
        """The engine's session, spoilt where it is of the component."""
        session = self.runtime.open(artifact)
        return SpoiltSession(session, self.spoil) if self._is_ours(artifact) else session

    def probe(self) -> Probe:
        """The engine's."""
        return self.runtime.probe()

    def _is_ours(self, artifact: Artifact) -> bool:
        return artifact.spec.name == self.component


@final
class SpoiltSession:
    """Another session, with its outputs spoilt."""

    def __init__(self, session: Session, spoil: Spoil) -> None:
        self._session = session
        self._spoil = spoil

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
        """The session's outputs, spoilt."""
        return self._spoil(feed, self._session.run(feed, outputs))

    def close(self) -> None:
        """Close the session."""
        self._session.close()
