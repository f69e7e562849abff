"""Which engine runs a bundle."""

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.runtimes import make_runtime, runtimes_for
from triptych.runtimes.base import Runtime, RuntimeSettings


def choose_runtime(bundle: Bundle, name: str | None, settings: RuntimeSettings) -> Runtime:
    """The engine that was asked for, or the first that reads the bundle's format.

    Raises:
        UsageError: no such engine, or it does not read this format.
    """
    able = runtimes_for(bundle.format)
    if name is not None and make_runtime(name).name not in able:
        raise UsageError(
            f"runtime: got {name!r} for a bundle in {bundle.format} format, "
            f"want {' or '.join(able)}."
        )
    return make_runtime(name or able[0], settings)
