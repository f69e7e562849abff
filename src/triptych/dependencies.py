"""Importing optional packages where they are used, with an error that says what to install."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

from triptych.errors import MissingDependencyError

_USAGE_STATISTICS = "openvino_telemetry"


def import_optional(name: str, *needed: str, extra: str) -> ModuleType:
    """Import a package.

    Importing OpenVINO or NNCF alone sends usage statistics, from a forked process, unless nobody
    in the process can import what sends them: here nobody can.

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
        with _without_usage_statistics():
            return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise MissingDependencyError(package=package, extra=extra) from error


@contextlib.contextmanager
def _without_usage_statistics() -> Iterator[None]:
    """Hide the package that sends them; its users are written to do without it."""
    absent = object()
    before = sys.modules.get(_USAGE_STATISTICS, absent)
    sys.modules[_USAGE_STATISTICS] = None  # type: ignore[assignment]  # how imports are refused
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[_USAGE_STATISTICS]
        else:
            sys.modules[_USAGE_STATISTICS] = before  # type: ignore[assignment]


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
