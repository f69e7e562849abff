"""What makes a dataset's pictures what they are, fixed by the first run for all that follow."""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from triptych.errors import BrokenInputError, UsageError
from triptych.workflows.generation.partial import open_partial
from triptych.workflows.generation.write_errors import writing_to

SETTINGS_FILE = "generation.json"
"""Beside the step folders."""

SCHEMA_VERSION = 1

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
_FIRST_INEXACT = 2**53
_READS = 10


def settings_fingerprint(settings: Mapping[str, object]) -> str:
    """A short name for settings: the same for equal values, whatever their order.

    7 and 7.0 are equal, as are lists and tuples.

    Args:
        settings: values that JSON can hold.

    Raises:
        ValueError: NaN or an infinity among them.
        TypeError: a value that JSON cannot hold.
    """
    return hashlib.sha256(_canonical(settings).encode()).hexdigest()[:16]


def check_settings_lock(output: Path, settings: Mapping[str, object]) -> None:
    """Refuse settings other than those a dataset was begun with. Writes nothing.

    Raises:
        UsageError: they differ; every difference is named.
        BrokenInputError: the file of settings cannot be read.
    """
    path = output / SETTINGS_FILE
    if not path.exists():
        return
    locked = _read(path)
    differences = list(_differences(_flat(locked), _flat(_plain(settings))))
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise UsageError(
            f"{output}: got settings that make other pictures than it was begun with:\n{lines}\n"
            "Give another folder, or --overwrite to make its pictures anew."
        )


def lock_settings(output: Path, settings: Mapping[str, object], *, overwrite: bool = False) -> str:
    """Fix a dataset's settings, or see that they are those it has.

    Of several that begin at the same moment one fixes them, and the others compare with its. The
    fingerprint goes into every record of the ledgers: after `overwrite`, pictures recorded with
    another one count as missing.

    Args:
        output: the dataset's folder; made where it is not there.
        settings: values that JSON can hold.
        overwrite: take these in place of other settings, or of a file that cannot be read.

    Returns:
        The settings' fingerprint.

    Raises:
        UsageError: the dataset was begun with others; every difference is named.
        BrokenInputError: its file of settings cannot be read.
        OutputError: it cannot be written.
        ValueError, TypeError: as `settings_fingerprint`.
    """
    path = output / SETTINGS_FILE
    fingerprint = settings_fingerprint(settings)
    if overwrite or not path.exists():
        content = {"schema_version": SCHEMA_VERSION, "settings": _plain(settings)}
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        with open_partial(output) as folder, writing_to(output):
            partial = folder / SETTINGS_FILE
            partial.write_text(text, encoding="utf-8")
            _publish(partial, path, overwrite=overwrite)
    check_settings_lock(output, settings)
    return fingerprint


def _publish(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Give a whole file its name; without `overwrite` only where nobody has been faster."""
    if overwrite:
        partial.replace(path)
        return
    with contextlib.suppress(FileExistsError):
        if os.name == "nt":
            partial.rename(path)  # there, and only there, it refuses a name that is taken
        elif not _is_linked(partial, path):
            with path.open("xb") as stream:
                stream.write(partial.read_bytes())


def _is_linked(partial: Path, path: Path) -> bool:
    """Give a file a second name; False where the file system, as exFAT, has no such thing."""
    try:
        path.hardlink_to(partial)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _read(path: Path) -> object:
    """The settings in a file, as plain values."""
    content = _loaded(path)
    fields = content if isinstance(content, dict) else {}
    version, settings = fields.get("schema_version"), fields.get("settings")
    if version != SCHEMA_VERSION or not isinstance(settings, dict):
        raise BrokenInputError(
            f"{path}: got schema_version {version!r}, want {SCHEMA_VERSION} and settings. Use the "
            "version of triptych that began the dataset, or give another folder."
        )
    return _plain(settings)


def _loaded(path: Path) -> object:
    """A file's JSON. Where there are no hard links, another may still be writing it."""
    attempts = _READS
    while True:
        attempts -= 1
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            if not attempts:
                raise BrokenInputError(
                    f"{path}: got {error}, want the settings of a dataset. Give --overwrite to "
                    "make its pictures anew."
                ) from error
        time.sleep(0.05)


def _plain(value: object) -> object:
    """A value as JSON gives it back, and whole numbers without a point."""
    match value:
        case float() if value.is_integer() and abs(value) < _FIRST_INEXACT:
            return int(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _canonical(value: object) -> str:
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)


def _flat(value: object, *, name: str = "") -> dict[str, str]:
    """Every setting by its name, nested ones with dots, as JSON."""
    if not isinstance(value, dict) or not value:
        return {name: _canonical(value)}
    return {
        path: text
        for key, item in value.items()
        for path, text in _flat(item, name=f"{name}.{key}" if name else key).items()
    }


def _differences(locked: Mapping[str, str], given: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(locked.keys() | given.keys()):
        got, want = given.get(name, "nothing"), locked.get(name, "nothing")
        if got != want:
            yield f"{name}: got {got}, want {want}"
