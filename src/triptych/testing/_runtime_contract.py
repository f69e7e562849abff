"""What every engine must do."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from triptych.bundle.bundle import Bundle
from triptych.errors import BackendError, CheckFailedError, TensorMismatchError, TriptychError
from triptych.models.feeds import Case, component_cases
from triptych.models.prompts import prompt_ids
from triptych.runtimes import make_runtime
from triptych.runtimes.base import Runtime, RuntimeSettings
from triptych.runtimes.checked import CheckedSession, open_session
from triptych.testing._requirements import require, require_error
from triptych.types import Array, TensorMap

ABSENT_DEVICE = "no-such-device"


def check_runtime(runtime: Runtime, bundle: Bundle) -> None:
    """Check one engine on every component of a bundle in a format that it reads.

    The engine must be registered, that is be a module in `triptych.runtimes`, and be installed.

    Args:
        runtime: the engine, on a device that is present.
        bundle: a whole bundle; a checkpoint for engines that run those.

    Raises:
        CheckFailedError: a clause of the contract is broken; the message names it.
        TriptychError: the engine could not run at all.
    """
    where = runtime.name
    require(bool(runtime.formats), where, "no formats", "at least one that it reads")
    require(bool(bundle.artifacts), where, "a bundle without components", "at least one")
    _check_probe(runtime)
    _check_absent_device(runtime, bundle)
    for component in bundle.artifacts:
        input_ids = prompt_ids(bundle.folder, component)
        axes = bundle.artifact(component).fixed_axes
        cases = list(
            component_cases(component, bundle.config, input_ids=input_ids, fixed_axes=axes)
        )
        with open_session(runtime, bundle, component) as session:
            for case in cases:
                _check_run(session, case, where=f"{where} {component} on {case.name}")
            _check_independence(session, cases, where=f"{where} {component}")
            _check_refusals(session, cases[0].feed, where=f"{where} {component}")
            _check_execution(session, runtime, where=f"{where} {component}")
        _check_closed(session, cases[0].feed, where=f"{where} {component}")


def _check_probe(runtime: Runtime) -> None:
    probe = runtime.probe()
    where = f"{runtime.name} probe"
    require(probe.runtime == runtime.name, where, repr(probe.runtime), "the engine's name")
    require(probe.installed, where, f"not installed ({probe.remedy})", "installed")
    require(bool(probe.versions), where, "no versions", "those of its packages")
    require(bool(probe.devices), where, "no devices", "at least one")


def _check_absent_device(runtime: Runtime, bundle: Bundle) -> None:
    where = f"{runtime.name} on device {ABSENT_DEVICE!r}"
    absent = make_runtime(runtime.name, RuntimeSettings(device=ABSENT_DEVICE))
    artifact = next(iter(bundle.artifacts.values()))
    error = require_error(
        lambda: absent.open(artifact), BackendError, where=where, when="when it opens"
    )
    unnamed = [device for device in runtime.probe().devices if device not in str(error)]
    require(not unnamed, where, f"{error} without {', '.join(unnamed)}", "every device named")


def _check_run(session: CheckedSession, case: Case, *, where: str) -> None:
    """Outputs as the spec says, the feed as it was, and nothing shared between them."""
    before = _feed_digests(case.feed)
    outputs = _run(session, case.feed, where=where)
    require(_feed_digests(case.feed) == before, where, "a changed feed", "it as it was")
    names = [tensor.name for tensor in session.spec.outputs]
    _check_outputs(outputs, case.feed, names, where=where)
    kept = {name: value.copy() for name, value in outputs.items()}
    again = session.run(case.feed)
    _require_equal(again, outputs, where, "other bits for the same feed", "the same")
    for variant, feed in (
        ("read-only", {name: _read_only(value) for name, value in case.feed.items()}),
        ("non-contiguous", {name: _strided(value) for name, value in case.feed.items()}),
    ):
        found = session.run(feed)
        _require_equal(found, kept, where, f"other bits for a {variant} feed", "the same")


def _run(session: CheckedSession, feed: TensorMap, *, where: str) -> dict[str, Array]:
    """One run; CheckedSession compares what comes out with the spec."""
    try:
        return session.run(feed)
    except TensorMismatchError as error:
        raise CheckFailedError(f"{where}: {error}") from error


def _check_outputs(
    outputs: TensorMap, feed: TensorMap, names: Sequence[str], *, where: str
) -> None:
    require(set(outputs) == set(names), where, f"outputs {sorted(outputs)}", f"{sorted(names)}")
    for name, output in outputs.items():
        require(output.dtype == np.float32, where, f"{name} in {output.dtype}", "float32")
        require(output.flags.c_contiguous, where, f"{name} strided", "C-contiguous")
        require(bool(np.isfinite(output).all()), where, f"{name} not finite", "finite")
        shared = [other for other, value in feed.items() if np.shares_memory(output, value)]
        require(not shared, where, f"{name} in the memory of {shared}", "memory of its own")


def _check_independence(session: CheckedSession, cases: list[Case], *, where: str) -> None:
    """What one run gave must survive the next, which engines with fixed buffers get wrong."""
    outputs = session.run(cases[0].feed)
    kept = {name: value.copy() for name, value in outputs.items()}
    for case in [*cases[1:], _changed(cases[0])]:
        session.run(case.feed)
        _require_equal(outputs, kept, where, "a result that a later run changed", "it as it was")


def _check_refusals(session: CheckedSession, feed: TensorMap, *, where: str) -> None:
    """A feed that is not the spec's is refused before the engine sees it."""
    name = next(iter(feed))
    value = feed[name]
    wrong: Mapping[str, TensorMap] = {
        "without a tensor": {key: value for key, value in feed.items() if key != name},
        "with an unknown tensor": {**feed, "no_such_tensor": value},
        "with an axis too many": {**feed, name: value[np.newaxis]},
        "with a wrong length": {**feed, name: np.concatenate([value, value], axis=1)},
        "with a wrong dtype": {**feed, name: value.astype(np.float64)},
    }
    calls = len(session.call_seconds)
    for what, bad in wrong.items():
        require_error(
            lambda bad=bad: session.run(bad),  # type: ignore[misc]  # a default binds it now
            TensorMismatchError,
            where=where,
            when=f"on a feed {what}",
        )
        require(len(session.call_seconds) == calls, where, f"a run {what}", "none")


def _check_execution(session: CheckedSession, runtime: Runtime, *, where: str) -> None:
    execution = session.execution
    require(execution.runtime == runtime.name, where, repr(execution.runtime), "its own name")
    for field in ("version", "device", "precision"):
        require(bool(getattr(execution, field)), where, f"no {field} in execution", "it named")
    devices = runtime.probe().devices
    found = [device for device in devices if execution.device.startswith(device)]
    require(bool(found), where, f"device {execution.device!r}", f"one of {', '.join(devices)}")


def _check_closed(session: CheckedSession, feed: TensorMap, *, where: str) -> None:
    require_error(lambda: session.run(feed), TriptychError, where=where, when="when it is closed")


def _changed(case: Case) -> Case:
    """The same shapes with other values: the sizes at which a reused buffer shows."""
    feed = {
        name: np.flip(value, axis=-1) if value.ndim else value for name, value in case.feed.items()
    }
    return Case(name=f"{case.name}, flipped", feed=feed)


def _read_only(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _strided(array: Array) -> Array:
    """The same values in every second cell of a wider array."""
    return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array


def _require_equal(
    actual: TensorMap, expected: TensorMap, where: str, problem: str, wanted: str
) -> None:
    for name, value in expected.items():
        require(np.array_equal(actual[name], value), f"{where} {name!r}", problem, wanted)


def _feed_digests(feed: TensorMap) -> dict[str, str]:
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in feed.items()}
