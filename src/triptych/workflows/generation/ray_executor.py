"""Painting on a Ray cluster: an actor for each worker, with a model of its own."""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import final

from triptych.dependencies import import_optional
from triptych.errors import BackendError, TriptychError
from triptych.workflows.generation.local_executor import Group, PaintReporter, groups_of
from triptych.workflows.generation.painter import Painted, PaintJob, open_painter
from triptych.workflows.generation.plan import Work

_MOST_ATTEMPTS = 3
"""How often a prompt is tried, where its actor ends each time."""


@final
class RayPainter:
    """What runs in an actor. All machines must see the bundle and the dataset under their paths."""

    def __init__(self, job: PaintJob) -> None:
        """Open the model."""
        self._stack = contextlib.ExitStack()
        self._painter = self._stack.enter_context(open_painter(job))

    def paint(self, group: Group) -> list[Painted]:
        """Paint the images of a prompt, to the last file.

        Raises:
            As `Painter.paint`.
        """
        done = [painted for item in group for painted in self._painter.paint(item)]
        return [*done, *self._painter.finish()]

    def close(self) -> None:
        """Close model and ledger."""
        self._stack.close()


def paint_on_ray(
    job: PaintJob, work: Sequence[Work], *, num_workers: int, report: PaintReporter
) -> None:
    """Paint on the cluster that is connected, or that RAY_ADDRESS names, or that runs here.

    A prompt whose actor ends is tried again by a new one: its files are written anew with the same
    bytes, and the ledger says what is there.

    Raises:
        MissingDependencyError: Ray is not installed.
        BackendError: there is no cluster, or an actor ended three times over one prompt.
        TriptychError: what an actor raised.
    """
    ray = import_optional("ray", extra="ray")
    with _connected(ray):
        _Team(ray, job, report=report).paint(groups_of(work), num_workers=num_workers)


@contextlib.contextmanager
def _connected(ray: ModuleType) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError as error:
        raise BackendError(
            "ray: got no cluster, want one. Start it with `ray start --head` and join machines to "
            "it, or set RAY_ADDRESS."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A group that an actor is at.

    Attributes:
        number: the worker's, from 0.
        actor: Ray's handle.
        group: what it paints.
        attempt: of this group, from 1.
    """

    number: int
    actor: object
    group: Group
    attempt: int


@final
class _Team:
    """The actors of one run, and who is at what."""

    def __init__(self, ray: ModuleType, job: PaintJob, *, report: PaintReporter) -> None:
        self._ray = ray
        self._job = job
        self._report = report
        needs_gpu = (job.runtime_settings.device or "").lower().startswith(("cuda", "gpu"))
        self._actor_class = ray.remote(num_cpus=1, num_gpus=int(needs_gpu))(RayPainter)
        self._turns: dict[object, _Turn] = {}

    def paint(self, groups: Sequence[Group], *, num_workers: int) -> None:
        """Give every group to whoever is free, until all are painted."""
        waiting = deque((group, 1) for group in groups)
        for number in range(min(num_workers, len(waiting))):
            self._begin(number, self._actor_class.remote(self._job), *waiting.popleft())
        while self._turns:
            [reference], _ = self._ray.wait(list(self._turns), num_returns=1)
            turn = self._turns.pop(reference)
            actor = turn.actor
            try:
                painted = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                actor = self._actor_class.remote(self._job)
                waiting.appendleft((turn.group, self._next_attempt(turn, error)))
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            else:
                for one in painted:
                    self._report(one, worker=turn.number)
            if waiting:
                self._begin(turn.number, actor, *waiting.popleft())
            else:
                self._ray.get(actor.close.remote())  # type: ignore[attr-defined]  # Ray's handle

    def _begin(self, number: int, actor: object, group: Group, attempt: int) -> None:
        reference = actor.paint.remote(group)  # type: ignore[attr-defined]  # Ray's handle
        self._turns[reference] = _Turn(number=number, actor=actor, group=group, attempt=attempt)

    def _next_attempt(self, turn: _Turn, error: Exception) -> int:
        """The number of the next attempt at a group whose actor has ended.

        Raises:
            BackendError: there have been enough.
        """
        if turn.attempt == _MOST_ATTEMPTS:
            unit = turn.group[0].unit
            raise BackendError(
                f"worker {turn.number}: got {_MOST_ATTEMPTS} actors that ended over {unit.id!r}, "
                f"prompt {unit.prompt_index} ({error}), want its pictures. What is in place is "
                "kept: give the same command again."
            ) from error
        return turn.attempt + 1


def _cause(error: Exception) -> Exception:
    """What was raised in the actor, where it is one of ours; a BackendError for the rest."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, TriptychError):
        return cause
    return BackendError(f"ray: got {cause or error} from an actor, want pictures.")
