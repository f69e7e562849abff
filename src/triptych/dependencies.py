"""Importing optional packages where they are used, with an error that says what to install."""

import importlib
from types import ModuleType

from triptych.errors import MissingDependencyError


def import_optional(*names: str, extra: str) -> ModuleType:
    """Import packages and return the first.

    Args:
        names: modules to import; the first is returned, the others are only needed.
        extra: the extra of triptych that brings them.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    try:
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        package = (error.name or names[0]).partition(".")[0]
        raise MissingDependencyError(package=package, extra=extra) from error
    return modules[0]
