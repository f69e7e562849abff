"""Removing a dataset's pictures, or some steps of them, and what was computed from them."""

import contextlib
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from triptych.errors import UsageError
from triptych.workflows.generation.ledger import LEDGER_FOLDER
from triptych.workflows.generation.partial import PARTIAL_FOLDER, find_writers, remove_leftovers
from triptych.workflows.generation.settings_lock import SETTINGS_FILE
from triptych.workflows.generation.tree import find_feature_caches, find_step_folders
from triptych.workflows.generation.write_errors import writing_to


def find_removals(output: Path, *, steps: Collection[int] | None = None) -> tuple[Path, ...]:
    """What `clean` would remove: whole step folders, feature caches, and what no folder needs.

    Caches in the dataset's own folder always go: of which step they are, nothing says. Ledgers and
    settings go with the last step folder; until then the records of what is removed do no harm.

    Args:
        output: the dataset's folder; it need not be there.
        steps: whose folders; None takes all.
    """
    folders = find_step_folders(output)
    chosen = [step for step in folders if steps is None or step in steps]
    removals = [*find_feature_caches(output, steps=chosen), *(folders[step] for step in chosen)]
    if len(chosen) == len(folders):
        removals += sorted((output / LEDGER_FOLDER).glob("*.jsonl"))
        removals += [path for path in (output / SETTINGS_FILE,) if path.exists()]
    return tuple(removals)


def clean(output: Path, *, steps: Collection[int] | None = None) -> tuple[Path, ...]:
    """Remove what `find_removals` lists, and what killed writers have left; return the list.

    Raises:
        UsageError: somebody is writing into the dataset.
        OutputError: something cannot be removed.
    """
    if writers := find_writers(output):
        raise UsageError(
            f"{output}: got {len(writers)} at work in it ({', '.join(writers)}), want none. Stop "
            "them first, or wait for them."
        )
    removals = find_removals(output, steps=steps)
    with writing_to(output):
        remove(removals)
    remove_leftovers(output)
    for emptied in (LEDGER_FOLDER, PARTIAL_FOLDER):
        with contextlib.suppress(OSError):  # not empty, or not there
            (output / emptied).rmdir()
    return removals


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders. Of a link, only the link.

    Raises:
        OSError: one cannot be removed.
    """
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
