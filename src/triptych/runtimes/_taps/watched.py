"""A session that remembers what it was fed, in the graph's own words."""

from typing import final

from triptych.runtimes.base import Session
from triptych.types import Array, TensorMap


@final
class WatchedSession:
    """Wraps a session.

    Attributes:
        feed: of the last run.
        given: what it gave in the last run; empty where it raised.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.execution = session.execution
        self.feed: TensorMap = {}
        self.given: TensorMap = {}

    def run(self, feed: TensorMap, outputs: tuple[str, ...]) -> dict[str, Array]:
        """Compute the named outputs."""
        self.feed = dict(feed)
        found = self._session.run(feed, outputs)
        self.given = found
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()
