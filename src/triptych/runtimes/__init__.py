"""Engines that run a component. The folder is the registry: one public module, one engine.

A new engine is one file with a `make_runtime(settings)` function; its existence registers it, under
its name with dashes, and puts it under the contract tests.
"""

import importlib
import pkgutil

from triptych.errors import UsageError
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.types import FormatName

_NOT_ENGINES = {"base", "checked", "kept_open", "mixed", "tiled_vae"}


def runtime_names() -> tuple[str, ...]:
    """The engines triptych knows, installed or not."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(
        sorted(
            name.replace("_", "-")
            for name in modules
            if name not in _NOT_ENGINES and not name.startswith("_")
        )
    )


def make_runtime(name: str, settings: RuntimeSettings | None = None) -> Runtime:
    """One engine with its settings. Nothing is loaded until it opens an artifact.

    Raises:
        UsageError: no engine of that name.
    """
    if name not in runtime_names():
        raise UsageError(f"runtime: got {name!r}, want one of {', '.join(runtime_names())}.")
    module = importlib.import_module(f"triptych.runtimes.{name.replace('-', '_')}")
    runtime: Runtime = module.make_runtime(settings or RuntimeSettings())
    return runtime


def runtimes_for(artifact_format: FormatName) -> tuple[str, ...]:
    """The engines that read a format."""
    return tuple(name for name in runtime_names() if artifact_format in make_runtime(name).formats)
