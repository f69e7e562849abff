"""What is known of every picture file: JSON lines beside the pictures, written before them.

Each writer has a file of its own, so that none waits for another and none can spoil another's.
A picture is moved into place after its record is on the disk: a file without a record is not ours.
"""

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Annotated, final

import msgspec

from triptych.errors import BrokenInputError

LEDGER_FOLDER = "ledger"
"""Beside the step folders."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One picture file, as it was written.

    Attributes:
        path: relative to the dataset, with forward slashes.
        id: the query's.
        n: the picture among those of the id.
        step: the step it shows, from 1.
        seed: of its noise.
        prompt: what it was made of.
        fingerprint: of the settings it was made with.
        sha256: of the file's content, in hexadecimal.
        size_bytes: the file's length.
        runtime: what made it.
        seconds: that making it took.
        time: when it was written.
    """

    path: str
    id: str
    n: int
    step: int
    seed: int
    prompt: str
    fingerprint: str
    sha256: str
    size_bytes: int
    runtime: str
    seconds: float
    time: Annotated[datetime, msgspec.Meta(tz=True)]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All ledgers of a dataset, read together.

    Attributes:
        by_path: the records of every path, the latest first: by time, then by file and line.
        num_skipped: lines that could not, as a killed writer leaves one.
    """

    by_path: Mapping[str, tuple[Record, ...]]
    num_skipped: int


@final
class LedgerWriter:
    """A ledger file that only this writer has. Made with the first record; safe among threads."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Prepare to write a new file.

        Args:
            path: the file; nobody else may write it.
            durable: wait for the disk, so that a power failure takes nothing back either.
        """
        self._path = path
        self._durable = durable
        self._stream: FileIO | None = None
        self._size_bytes = 0
        self._lock = threading.Lock()

    def append(self, records: Iterable[Record]) -> None:
        """Write records, all or none of them: what was written of them is cut off again.

        Raises:
            OSError: they could not be written.
        """
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        with self._lock:
            if self._stream is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("xb", buffering=0)
            try:
                is_torn = self._stream.tell() != self._size_bytes
                _write_all(self._stream, b"\n" + lines if is_torn else lines)
                if self._durable:
                    os.fsync(self._stream.fileno())
            except OSError:
                self._cut_off()
                raise
            self._size_bytes = self._stream.tell()

    def _cut_off(self) -> None:
        """Take back what a failed write has left; where that fails, the next one begins a line."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._size_bytes)
                self._stream.seek(self._size_bytes)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._stream is not None:
            self._stream.close()


def read_ledgers(output: Path) -> Ledger:
    """Every record of a dataset. Lines that are cut off or garbled are counted and passed over.

    Raises:
        BrokenInputError: a ledger cannot be read at all.
    """
    records: list[Record] = []
    num_skipped = 0
    for path in sorted((output / LEDGER_FOLDER).glob("*.jsonl")):
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise BrokenInputError(
                f"{path}: got {error.strerror}, want a ledger. See that it may be read."
            ) from error
        read = [_record(line) for line in lines if line]
        records.extend(record for record in read if record is not None)
        num_skipped += read.count(None)
    by_path: defaultdict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.time):
        by_path[record.path].append(record)
    return Ledger(
        by_path={path: tuple(reversed(same)) for path, same in by_path.items()},
        num_skipped=num_skipped,
    )


def _record(line: bytes) -> Record | None:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _write_all(stream: FileIO, content: bytes) -> None:
    """Write all of it: a nearly full disk takes a part, and refuses only the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


_DECODER = msgspec.json.Decoder(Record)
