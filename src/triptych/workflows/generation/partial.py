"""Where files are written before they are whole: a folder for each writer, on the same disk.

`OUTPUT/.partial/NAME/` is a writer's own, and `OUTPUT/.partial/NAME.lock` is locked for as long as
its process lives: the system lets go of the lock however the process ends. So a folder whose lock
can be had belongs to nobody. Only folders of the same machine are removed, because some network
file systems keep locks to one machine; and none where a file system has no locks at all.
"""

import contextlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from triptych.errors import OutputError
from triptych.workflows.generation.write_errors import writing_to

PARTIAL_FOLDER = ".partial"
"""Beside the step folders; there while somebody writes, or was killed writing."""

_Locked: TypeAlias = Literal["here", "elsewhere", "unknown"]
_NAME = re.compile(r"(?P<machine>.+)-[0-9]+-[0-9a-f]{8}")
_ATTEMPTS = 100


@contextlib.contextmanager
def open_partial(output: Path) -> Iterator[Path]:
    """An empty folder of this writer's own for unfinished files; removed at the end.

    What dead writers of this machine have left is removed first. The folder's name is unlike that
    of any other writer, on any machine.

    Args:
        output: the dataset's folder; made where it is not there.

    Raises:
        OutputError: the folder cannot be made.
    """
    root = output / PARTIAL_FOLDER
    with writing_to(output):
        folder, lock = _made(root)
    try:
        remove_leftovers(output)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _forget(lock, _lock_path(folder))
        with contextlib.suppress(OSError):  # others still write
            root.rmdir()


def find_writers(output: Path) -> tuple[str, ...]:
    """The names of those who write into a dataset just now, as far as locks can tell."""
    names = []
    for path in _lock_paths(output):
        with contextlib.suppress(OSError), path.open("rb+") as lock:  # removed meanwhile
            if _try_lock(lock) == "elsewhere":
                names.append(path.stem)
    return tuple(names)


def remove_leftovers(output: Path) -> None:
    """Remove the unfinished files of writers of this machine that are dead."""
    for path in _lock_paths(output):
        found = _NAME.fullmatch(path.stem)
        if found is not None and found["machine"] == _machine():
            with contextlib.suppress(OSError):  # its writer, or somebody like us, has removed it
                _remove_leftover(path)


def _made(root: Path) -> tuple[Path, BinaryIO]:
    """A folder and its lock, which is held."""
    for _ in range(_ATTEMPTS):
        folder = root / f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        path = _lock_path(folder)
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = path.open("xb")
        except (FileNotFoundError, FileExistsError):
            continue  # a writer at its end has just removed the empty folder
        if _try_lock(lock) != "elsewhere" and path.exists():
            folder.mkdir()
            return folder, lock
        _forget(lock, path)  # somebody who removes leftovers has been faster than the lock
    raise OutputError(f"{root}: got no place to write in, want a folder. Remove what is there.")


def _remove_leftover(lock_path: Path) -> None:
    folder = lock_path.with_suffix("")
    with lock_path.open("rb+") as lock:
        is_left = _try_lock(lock) == "here"
        if is_left:
            shutil.rmtree(folder, ignore_errors=True)
    if is_left and not folder.exists():
        lock_path.unlink()


def _forget(lock: BinaryIO, path: Path) -> None:
    """Let go of a lock and remove its file; closed first, because Windows keeps open files."""
    lock.close()
    with contextlib.suppress(OSError):
        path.unlink()


def _lock_paths(output: Path) -> list[Path]:
    """Everybody's; none where the folder is gone, which may be at any moment."""
    try:
        return sorted(p for p in (output / PARTIAL_FOLDER).iterdir() if p.suffix == ".lock")
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _machine() -> str:
    """The machine's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", platform.node())[:64] or "unknown"


def _try_lock(lock: BinaryIO) -> _Locked:
    """Lock a file until it is closed. unknown: the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is Windows'
        return "elsewhere"
    except OSError:
        return "unknown"
    return "here"
