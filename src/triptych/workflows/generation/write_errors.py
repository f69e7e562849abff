"""What a failed write means for a dataset, said so that one knows what to do."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from triptych.bundle.store import DISK_IS_FULL
from triptych.errors import OutputError

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def writing_to(output: Path) -> Iterator[None]:
    """A block that writes under a dataset's folder.

    Raises:
        OutputError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or output
        raise OutputError(
            f"{where}: got {error.strerror or error}, want to write there. "
            f"{_advice(error.errno, output)} The pictures in {output} are whole and are kept: "
            "give the same command again, and it makes those that are missing."
        ) from error


def _advice(number: int | None, output: Path) -> str:
    if number in DISK_IS_FULL:
        return f"Make room on the disk of {output}, or raise the quota."
    if number in _FORBIDDEN:
        return f"See that {output} may be written to."
    return f"See to the disk of {output}."
