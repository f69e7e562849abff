"""A folder that appears whole or not at all, for checkpoints that are made on the spot."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from triptych.errors import UsageError


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a scratch folder; what lies in its `checkpoint` becomes `folder` when all went well.

    Raises:
        UsageError: `folder` is a file, or holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "a folder that is not empty" if folder.is_dir() else "a file"
        raise UsageError(
            f"{folder}: got {what}, want an absent or empty folder. "
            "Name another, or delete this one first."
        )
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        yield Path(scratch)
        if target.is_dir():
            target.rmdir()  # only POSIX renames onto an empty folder
        Path(scratch, "checkpoint").rename(target)
