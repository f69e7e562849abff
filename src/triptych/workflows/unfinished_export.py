"""What an export that failed leaves: the components that were finished, for `--resume`."""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import msgspec

import triptych
from triptych.bundle.manifest import ComponentRecord
from triptych.errors import UsageError
from triptych.exporters.base import ExportSettings
from triptych.models.checkpoint import Checkpoint
from triptych.types import ComponentName, FormatName

_RECORDS = "finished.json"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """What the folder of an unfinished export says of itself.

    Attributes:
        key: of what was asked for: only an export of the same may go on from it.
        records: of the components that stand in the folder.
    """

    key: str
    records: tuple[ComponentRecord, ...]


def export_key(
    checkpoint: Checkpoint, components: Sequence[ComponentName], settings: ExportSettings
) -> str:
    """Tells exports apart whose components cannot be mixed."""
    weights = {name: checkpoint.stored_tensors(name) for name in components}
    files = {
        file for stored in weights.values() for tensor in stored.values() for file in tensor.files
    }
    states = sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    asked = msgspec.json.encode((triptych.__version__, settings, weights, states), enc_hook=str)
    return hashlib.sha256(asked).hexdigest()


def keep_finished(
    partial: Path, target: Path, records: Iterable[ComponentRecord], *, key: str
) -> None:
    """Move the finished components of a bundle that will not be finished beside its place."""
    kept = tuple(records)
    if not kept:
        return
    unfinished = _folder(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for record in kept:
        for part in _parts(record):
            (partial / part).rename(unfinished / part)
    (unfinished / _RECORDS).write_bytes(msgspec.json.encode(_Finished(key=key, records=kept)))


def take_finished(target: Path, partial: Path, *, key: str) -> tuple[ComponentRecord, ...]:
    """Move the components that an export left into the one that goes on from it.

    Returns:
        Their records; none where nothing was left.

    Raises:
        UsageError: what was left is of another checkpoint, or of other settings.
    """
    unfinished = _folder(target)
    if not (unfinished / _RECORDS).is_file():
        return ()
    finished = msgspec.json.decode((unfinished / _RECORDS).read_bytes(), type=_Finished)
    if finished.key != key:
        raise UsageError(
            f"{unfinished}: got what an export of another checkpoint, of other settings or by "
            "another version left, want one of the same. Leave --resume out to begin anew."
        )
    for record in finished.records:
        for part in _parts(record):
            shutil.rmtree(partial / part, ignore_errors=True)  # a config, which is there too
            (unfinished / part).rename(partial / part)
    shutil.rmtree(unfinished)
    return finished.records


def unfinished_exports(output: Path, formats: Iterable[FormatName]) -> list[Path]:
    """The folders of what exports left in an output folder."""
    folders = (_folder(output / name) for name in formats)
    return [folder for folder in folders if folder.is_dir()]


def drop_finished(target: Path) -> None:
    """Delete what an export left."""
    shutil.rmtree(_folder(target), ignore_errors=True)


def _folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def _parts(record: ComponentRecord) -> set[str]:
    """The folders that a component lies in, directly in the bundle."""
    return {Path(file).parts[0] for file in (record.file, *record.chunks)}
