"""Writing pictures so that each appears whole, recorded, and in its place, or not at all."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from triptych.types import Array
from triptych.workflows.generation.ledger import LEDGER_FOLDER, LedgerWriter, Record
from triptych.workflows.generation.names import PictureFormat, picture_path
from triptych.workflows.generation.partial import open_partial
from triptych.workflows.generation.pictures import DEFAULT_QUALITY, check_quality, encode_picture
from triptych.workflows.generation.shards import Shard
from triptych.workflows.generation.units import Unit
from triptych.workflows.generation.write_errors import writing_to


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSettings:
    """How pictures are written, and what is recorded of all of them.

    Attributes:
        fingerprint: of the settings that the dataset is locked to.
        runtime: what makes the pictures.
        picture_format: how they are stored.
        quality: of jpg, 1 to 100.
        durable: wait for the disk at every file, so that a power failure finds them whole too.
            Without it only an end of the process does.
    """

    fingerprint: str
    runtime: str
    picture_format: PictureFormat = "jpg"
    quality: int = DEFAULT_QUALITY
    durable: bool = True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture to write.

    Attributes:
        unit: which it is.
        step: which step it shows, from 1.
        pixels: uint8 [height_px, width_px, 3].
        seconds: that making it took; goes into its record.
    """

    unit: Unit
    step: int
    pixels: Array
    seconds: float


@final
class DatasetWriter:
    """Writes pictures into a dataset that others may be writing into too. Safe among threads."""

    def __init__(
        self, output: Path, settings: WriterSettings, *, partial: Path, ledger: LedgerWriter
    ) -> None:
        """Prepare; `open_writer` does this and cleans up.

        Args:
            output: the dataset's folder.
            settings: how to write.
            partial: a folder of this writer's own on the same disk.
            ledger: a ledger of its own.
        """
        self._output = output
        self._settings = settings
        self._partial = partial
        self._ledger = ledger
        self._numbers = itertools.count()

    def save(self, pictures: Sequence[Picture]) -> tuple[Record, ...]:
        """Write pictures: to temporary files, then all their records, then each into its place.

        Ended at any moment, every file in a picture folder is whole and has a record.

        Raises:
            OutputError: the disk is full, or may not be written to. What is in place stays.
            TensorMismatchError: pixels that are not a picture's.
        """
        written: list[tuple[Path, Record]] = []
        try:
            with writing_to(self._output):
                written.extend(self._write_partial(picture) for picture in pictures)
                records = tuple(record for _, record in written)
                self._ledger.append(records)
                for partial, record in written:
                    target = self._output / record.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial.replace(target)
                return records
        finally:
            for partial, _ in written:
                _discard(partial)

    def _write_partial(self, picture: Picture) -> tuple[Path, Record]:
        settings, unit = self._settings, picture.unit
        content = encode_picture(
            picture.pixels, picture_format=settings.picture_format, quality=settings.quality
        )
        path = self._partial / f"{next(self._numbers)}.{settings.picture_format}"
        _write_whole(path, content, durable=settings.durable)
        return path, Record(
            path=picture_path(
                step=picture.step,
                query_id=unit.id,
                n=unit.n,
                picture_format=settings.picture_format,
            ),
            id=unit.id,
            n=unit.n,
            step=picture.step,
            seed=unit.seed,
            prompt=unit.prompt,
            fingerprint=settings.fingerprint,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            runtime=settings.runtime,
            seconds=picture.seconds,
            time=datetime.now(UTC),
        )


@contextlib.contextmanager
def open_writer(output: Path, settings: WriterSettings, *, shard: Shard) -> Iterator[DatasetWriter]:
    """A writer for one process. Its ledger's name says the shard, machine and process.

    Args:
        output: the dataset's folder, locked to the settings.
        settings: how to write.
        shard: which part is made; for the ledger's name only.

    Raises:
        OutputError: the folder cannot be written to.
        UsageError: there is no such JPEG quality.
    """
    check_quality(settings.quality)
    with open_partial(output) as partial:
        name = f"{shard.index}-of-{shard.count}-{partial.name}.jsonl"
        ledger = LedgerWriter(output / LEDGER_FOLDER / name, durable=settings.durable)
        try:
            yield DatasetWriter(output, settings, partial=partial, ledger=ledger)
        finally:
            ledger.close()


def _write_whole(path: Path, content: bytes, *, durable: bool) -> None:
    """Write a new file, or leave none: a full disk has no room for half a picture."""
    try:
        with path.open("xb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
    except OSError:
        _discard(path)
        raise


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
