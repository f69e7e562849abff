"""Importing optional packages where they are used, with an error that says what to install."""

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

from triptych.errors import MissingDependencyError


def import_optional(name: str, *needed: str, extra: str) -> ModuleType:
    """Import a package.

    Args:
        name: the module to import.
        needed: packages that the caller will import later; only looked for, because importing
            them can take seconds.
        extra: the extra of triptych that brings them.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package=package, extra=extra)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise MissingDependencyError(package=package, extra=extra) from error


def import_coremltools() -> ModuleType:
    """Import coremltools without what it logs meanwhile.

    It warns of every library that only macOS has, and of versions of torch and scikit-learn that
    it was not tested with; what matters of that, the parity check shows.

    Raises:
        MissingDependencyError: it is not installed.
    """
    with quiet_coremltools():
        return import_optional("coremltools", extra="coreml")


@contextlib.contextmanager
def quiet_coremltools() -> Iterator[None]:
    """A block in which coremltools, and what it calls, warn and log errors alone."""
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
