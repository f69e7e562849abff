"""Writing a folder so that it exists whole or not at all, and finding out whether it still is."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from triptych.bundle.manifest import FileRecord
from triptych.errors import BundleError, OutputError, UsageError

DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors that more room on the disk, or a larger quota, would mend."""

_PARTIAL = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<pid>\d+)$")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_files(folder: Path) -> tuple[FileRecord, ...]:
    """Size and hash of every file in a folder, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        FileRecord(
            path=path.relative_to(folder).as_posix(),
            sha256=file_sha256(path),
            size_bytes=path.stat().st_size,
        )
        for path in files
    )


def find_damage(
    folder: Path, records: Sequence[FileRecord], *, hashes: bool = True
) -> tuple[str, ...]:
    """What is wrong with a folder's files; empty when nothing is.

    Args:
        folder: the bundle.
        records: what its manifest promises.
        hashes: compare contents too, not only sizes.
    """
    return tuple(
        damage
        for record in records
        if (damage := _damage_of(folder / record.path, record, hashes=hashes))
    )


def _damage_of(path: Path, record: FileRecord, *, hashes: bool) -> str:
    if not path.is_file():
        return f"{record.path}: missing"
    size = path.stat().st_size
    if size < record.size_bytes:
        return f"{record.path}: truncated, {size} of {record.size_bytes} bytes"
    if size != record.size_bytes:
        return f"{record.path}: {size} bytes, the manifest says {record.size_bytes}"
    if hashes and file_sha256(path) != record.sha256:
        return f"{record.path}: content changed, its hash is not the manifest's"
    return ""


def check_files(folder: Path, records: Sequence[FileRecord], *, hashes: bool = True) -> None:
    """Refuse a folder whose files are not what its manifest promises.

    Raises:
        BundleError: a file is missing, truncated or changed; all of them are named.
    """
    damage = find_damage(folder, records, hashes=hashes)
    if damage:
        raise BundleError(
            f"{folder}: got {'; '.join(damage)}, want the files as they were exported. "
            "Copy the bundle again, or export it again."
        )


@contextlib.contextmanager
def replace_folder(
    target: Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """Fill a temporary folder; when the block ends well, it becomes the target in one rename.

    The temporary folder is a sibling, so on the same filesystem. If the block raises, it is
    removed and the target is as it was. A process killed inside the block leaves only the
    temporary folder, which the next call removes; killed while an old target is being replaced,
    the next call puts the old one back.

    Args:
        target: the folder to make.
        overwrite: replace an existing target. It is moved aside, and deleted only when the new
            one stands.
        marker: a file that every such folder has. Without it an existing target is somebody
            else's, and is not replaced even with `overwrite`.

    Raises:
        UsageError: the target exists and `overwrite` was not given, or it is somebody else's.
        OutputError: it cannot be made there, or its disk became full.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target)
        _check_target(target, overwrite=overwrite, marker=marker)
        partial.mkdir()
    except OSError as error:
        raise OutputError(
            f"{target}: got {error}, want to make a folder there. Give another path."
        ) from error
    try:
        yield partial
        _flush(partial)
        _swap(partial, target)
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise OutputError(
            f"{target}: got {error}, want room for all of it. Nothing of it was kept. Make room "
            "on its disk, or give a folder on another."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and its folders; it appears whole or not at all, and replaces another.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: could not write it. {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _check_target(target: Path, *, overwrite: bool, marker: str | None) -> None:
    if target.is_symlink() or target.is_file():
        raise UsageError(f"{target}: got a file or a link, want a folder. Give another path.")
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(
            f"{target}: got a path that exists, want a new one. "
            "Give another folder, or --overwrite to replace it as a whole."
        )
    if marker is not None and any(target.iterdir()) and not (target / marker).is_file():
        raise UsageError(
            f"{target}: got a folder without {marker}, so not one that this command made; it is "
            "not replaced. Give another folder."
        )


def _swap(partial: Path, target: Path) -> None:
    replaced = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    if target.exists():
        target.rename(replaced)
    partial.rename(target)
    if replaced.exists():
        shutil.rmtree(replaced)


def _flush(folder: Path) -> None:
    """Put the files on the disk before the rename says that they are there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _clear_leftovers(target: Path) -> None:
    """Remove what killed processes left, and put back a target that one had moved aside."""
    for path in target.parent.iterdir():
        found = _PARTIAL.match(path.name)
        if found is None or found["name"] != target.name or _is_alive(int(found["pid"])):
            continue
        if found["kind"] == "replaced" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    if os.name == "nt":  # where signal 0 is Ctrl-C: leave the leftovers to their owner
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
