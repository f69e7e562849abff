"""Whether a picture's file is what is asked for, by its content and its records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from triptych.bundle.store import file_sha256
from triptych.workflows.generation.ledger import Record
from triptych.workflows.generation.units import Unit

Reason: TypeAlias = Literal[
    "missing", "damaged", "unrecorded", "other settings", "other prompt", "other seed"
]
"""Why a file is to be made: it is not there; its content is that of no record, or cannot be read;
it has no record; or what it was made with or of is no longer what is asked for."""


def find_reason(
    path: Path, unit: Unit, *, records: Sequence[Record], fingerprint: str, hashes: bool
) -> Reason | None:
    """Why a file is to be made; None when it is done.

    A file is done when one of its records has its hash and says what is asked for. So neither
    clocks that disagree nor a record whose picture never came into place do harm.

    Args:
        path: the file.
        unit: the picture that it should be.
        records: all of its path, the latest first.
        fingerprint: of the settings that it should be made with.
        hashes: read the file; otherwise only its size is looked at.
    """
    try:
        size_bytes = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "damaged"
    differences = [_difference(record, unit, fingerprint=fingerprint) for record in records]
    if None not in differences:
        return differences[0] if differences else "unrecorded"
    hashes_wanted = {
        record.sha256
        for record, difference in zip(records, differences, strict=True)
        if difference is None and record.size_bytes == size_bytes
    }
    if not hashes_wanted:
        return "damaged"
    return None if not hashes or _sha256_or_none(path) in hashes_wanted else "damaged"


def _difference(record: Record, unit: Unit, *, fingerprint: str) -> Reason | None:
    """What a record says that is not asked for."""
    if record.fingerprint != fingerprint:
        return "other settings"
    if record.prompt != unit.prompt:
        return "other prompt"
    return None if record.seed == unit.seed else "other seed"


def _sha256_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
