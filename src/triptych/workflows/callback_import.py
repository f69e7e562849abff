"""Callbacks by name: `module:function`, from the path that Python imports from, or this folder."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from triptych.errors import UsageError
from triptych.sampling.callbacks import StepCallback


def import_callback(name: str) -> StepCallback:
    """The callback that `module:attribute` names: a function, or an object that can be called.

    Raises:
        UsageError: there is no such module or attribute, or it cannot be called.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"callback: got {name!r}, want module:function.")
    try:
        with _this_folder_too():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"callback: got {name!r}, but cannot import {module_name} ({error}). Run in the folder "
            "that holds it, or install it."
        ) from error
    callback = getattr(module, attribute, None)
    if not isinstance(callback, StepCallback):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UsageError(
            f"callback: got {name!r}, want something in {module_name} that can be called: "
            f"{', '.join(known) or 'it has nothing of the kind'}."
        )
    return callback


@contextmanager
def _this_folder_too() -> Iterator[None]:
    """Installed commands, unlike `python -m`, do not import from the folder they run in."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
