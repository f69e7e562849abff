"""What the commands print with: results on stdout, everything else on stderr."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from triptych.errors import TriptychError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def stdout() -> "Console":
    """The console for results."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    # A pipe has no width of its own; tables should not be folded to a terminal's of 1980.
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=140)


def stderr() -> "Console":
    """The console for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def say(message: str) -> None:
    """Print a line of a result as it is: not read as markup, not folded."""
    stdout().print(message, markup=False, soft_wrap=True)


def fail(error: TriptychError) -> None:
    """Print an error for people."""
    from rich.markup import escape

    stderr().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)


def note(message: str) -> None:
    """Print a remark for people."""
    from rich.markup import escape

    stderr().print(escape(message), soft_wrap=True)


def print_json(document: object) -> None:
    """Print one JSON document."""
    print(json_text(document), end="")


def json_text(document: object) -> str:
    """One JSON document; strict, so that NaN never reaches a script as a bare word."""
    return f"{json.dumps(document, indent=2, allow_nan=False)}\n"


@contextmanager
def progress_bars() -> "Iterator[Progress]":
    """Progress bars on stderr; silent where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    console = stderr()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def working(label: str) -> Iterator[None]:
    """A bar without an end on stderr, for work whose length is not known."""
    with progress_bars() as bars:
        task = bars.add_task(label, total=None, stage="")
        yield
        bars.update(task, total=1, completed=1, stage="done")


def size_text(size_bytes: int) -> str:
    """A size for people: 1.2 GB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError(size_bytes)


def number_text(value: float, digits: str = ".1e") -> str:
    """A measured number for people; NaN and infinity stand out."""
    return f"{value:{digits}}" if math.isfinite(value) else str(value)
