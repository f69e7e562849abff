"""Exporters from a checkpoint to a format. The folder is the registry: one module, one format.

A new format is one file with a `make_exporter(settings)` function; its existence registers it and
puts it under the contract tests.
"""

import importlib
import pkgutil

from triptych.errors import UsageError
from triptych.exporters.base import Exporter, ExportSettings

_NOT_FORMATS = {"base"}


def exporter_names() -> tuple[str, ...]:
    """The formats triptych exports to, installed or not."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(
        sorted(name for name in modules if name not in _NOT_FORMATS and not name.startswith("_"))
    )


def make_exporter(name: str, settings: ExportSettings | None = None) -> Exporter:
    """The exporter of one format.

    Raises:
        UsageError: no such format.
    """
    if name not in exporter_names():
        raise UsageError(f"format: got {name!r}, want one of {', '.join(exporter_names())}.")
    module = importlib.import_module(f"triptych.exporters.{name}")
    exporter: Exporter = module.make_exporter(settings or ExportSettings())
    return exporter
