"""What users write, by name: `module:function`, from the path that Python imports from, or here."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal, Never, TypeAlias

from triptych.errors import UsageError
from triptych.parity.image import ImageMetric
from triptych.sampling.callbacks import StepCallback
from triptych.workflows.torch_callback import with_torch_tensors

CallbackArrays: TypeAlias = Literal["auto", "numpy", "torch"]
"""What a callback is given. auto: torch tensors where its module uses torch or diffusers, as what
was written for diffusers' pipelines does; NumPy arrays otherwise."""


def import_callback(name: str, *, arrays: CallbackArrays = "auto") -> StepCallback:
    """The callback that `module:attribute` names: a function, or an object that can be called.

    Args:
        name: of both.
        arrays: what it is given.

    Raises:
        UsageError: there is no such module or attribute, or it cannot be called.
        MissingDependencyError: it wants torch tensors, and torch is not installed.
    """
    module, callback = _import_callable(name, what="callback")
    if arrays == "torch" or (arrays == "auto" and _uses_torch(module)):
        return with_torch_tensors(callback)
    return callback


def import_image_metric(name: str) -> ImageMetric:
    """The metric that `module:function` names.

    Raises:
        UsageError: there is no such module or attribute, or it cannot be called.
    """
    _, metric = _import_callable(name, what="image metric")
    return metric


def _import_callable(name: str, *, what: str) -> tuple[ModuleType, Callable[..., Never]]:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"{what}: got {name!r}, want module:function.")
    try:
        with _this_folder_too():
            module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module does when it is run
        raise UsageError(
            f"{what}: got {name!r}, but cannot import {module_name} "
            f"({type(error).__name__}: {error}). Run in the folder that holds it, or install it."
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UsageError(
            f"{what}: got {name!r}, want something in {module_name} that can be called: "
            f"{', '.join(known) or 'it has nothing of the kind'}."
        )
    return module, found


def _uses_torch(module: ModuleType) -> bool:
    names = [module.__name__]
    for value in vars(module).values():
        is_module = isinstance(value, ModuleType)
        names.append(value.__name__ if is_module else str(getattr(value, "__module__", "")))
    return any(name.partition(".")[0] in ("torch", "diffusers") for name in names)


@contextmanager
def _this_folder_too() -> Iterator[None]:
    """Installed commands, unlike `python -m`, do not import from the folder they run in."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
