"""Painting on this machine: in this process, or in several of it."""

import contextlib
import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Protocol, TypeAlias, final, runtime_checkable

from triptych.errors import BackendError, TriptychError
from triptych.workflows.generation.painter import Painted, PaintJob, open_painter
from triptych.workflows.generation.plan import Work

Group: TypeAlias = tuple[Work, ...]
"""The images of one prompt, which are painted together and encoded once."""

_JOIN_SECONDS = 10.0


@runtime_checkable
class PaintReporter(Protocol):
    """Told of work that is done, and by which worker, from 0."""

    def __call__(self, painted: Painted, *, worker: int) -> None:
        """Take note of it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a worker says that it cannot go on.

    Attributes:
        message: the error's.
        kind: the error's class.
    """

    message: str
    kind: type[TriptychError]


def groups_of(work: Sequence[Work]) -> list[Group]:
    """Work in groups of one prompt each, in order."""
    by_prompt = itertools.groupby(
        work, key=lambda item: (item.unit.query_index, item.unit.prompt_index)
    )
    return [tuple(group) for _, group in by_prompt]


def paint_here(job: PaintJob, work: Sequence[Work], *, report: PaintReporter) -> None:
    """Paint everything in this process.

    Raises:
        As `Painter.paint`.
    """
    with open_painter(job) as painter:
        for item in work:
            for painted in painter.paint(item):
                report(painted, worker=0)
        for painted in painter.finish():
            report(painted, worker=0)


def paint_in_processes(
    job: PaintJob, work: Sequence[Work], *, num_workers: int, report: PaintReporter
) -> None:
    """Paint in several processes of one model each; whichever is free takes the next prompt.

    Raises:
        TriptychError: what a worker raised, of its class; BackendError where one ended without a
            word. The others stop, and what is in place stays.
    """
    waiting = deque(groups_of(work))
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(_started(job, number))
            for number in range(min(num_workers, len(waiting)))
        ]
        busy = {worker.connection: worker for worker in workers}
        while busy:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # wait gives back what it was given
                message = worker.received()
                match message:
                    case Failure(message=text, kind=kind):
                        raise kind(text)
                    case Painted():
                        report(message, worker=worker.number)
                    case "idle" if waiting:
                        worker.connection.send(waiting.popleft())
                    case "idle":
                        worker.connection.send(None)
                    case _:
                        del busy[worker.connection]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    number: int
    process: SpawnProcess
    connection: Connection

    def received(self) -> object:
        """Its next message.

        Raises:
            BackendError: it has ended without one.
        """
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(_JOIN_SECONDS)
            code = self.process.exitcode
            hint = " Most often the machine ran out of memory." if code == -signal.SIGKILL else ""
            raise BackendError(
                f"worker {self.number}: got an end with exit code {code}, want its pictures.{hint} "
                "What is in place is kept: give the same command again, perhaps with fewer workers."
            ) from error


@contextlib.contextmanager
def _started(job: PaintJob, number: int) -> Iterator[_Worker]:
    """A worker process, which does not outlive this one: its pipe ends with it."""
    context: SpawnContext = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Worker(number=number, process=process, connection=ours)
    finally:
        ours.close()
        process.join(0 if process.exitcode is not None else _JOIN_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _work(connection: Connection, job: PaintJob) -> None:
    """A worker: groups in, what is painted out, until there are no more or nobody listens."""
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        try:
            with open_painter(job) as painter:
                connection.send("idle")
                while (group := connection.recv()) is not None:
                    for item in group:
                        for painted in painter.paint(item):
                            connection.send(painted)
                    connection.send("idle")
                for painted in painter.finish():
                    connection.send(painted)
            connection.send("done")
        except TriptychError as error:
            connection.send(Failure(message=str(error), kind=_plain_kind(error)))


def _plain_kind(error: TriptychError) -> type[TriptychError]:
    """The nearest class of an error that is made from its message alone."""
    for kind in type(error).__mro__:
        if issubclass(kind, TriptychError) and "__init__" not in vars(kind):
            return kind
    return TriptychError
