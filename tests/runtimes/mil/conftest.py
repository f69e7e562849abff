"""Small ML programs built with coremltools, run by the interpreter and by coremltools itself."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import coremltools
import numpy as np
import pytest
from coremltools.converters import _converters_entry
from coremltools.converters.mil.mil import Function, Program, Var, types

from triptych.runtimes._mil.interpreter import open_program, run

Body = Callable[..., object]

_DTYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}


@contextlib.contextmanager
def _conversion() -> Iterator[None]:
    """coremltools' conversion without its own full garbage collection: half a second each."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(_converters_entry, "gc", SimpleNamespace(collect=lambda: 0))
        # Its temporary folder is left to the garbage collector.
        warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
        yield


@pytest.fixture(scope="session")
def conversion() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Makes a block in which coremltools may convert, compress and cut models.

    Models made in it must not outlive it: dropping them drops their temporary folders.
    """
    return _conversion


@pytest.fixture(scope="session")
def save_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves `body(**inputs)` as a package, its operators as they are written: no passes run.

    The inputs have the names, shapes and dtypes of a feed, and those placeholders besides.
    """
    folder, numbers = tmp_path_factory.mktemp("programs"), itertools.count()

    def save(
        body: Body,
        feed: dict[str, np.ndarray],
        *,
        target: str = "iOS17",
        placeholders: dict[str, object] | None = None,
        **settings: object,
    ) -> Path:
        version = getattr(coremltools.target, target)
        inputs = {
            name: coremltools.converters.mil.Builder.placeholder(
                shape=array.shape, dtype=_DTYPES[str(array.dtype)]
            )
            for name, array in feed.items()
        } | (placeholders or {})
        program = Program()
        with Function(inputs, opset_version=version) as function:
            results = body(**function.inputs)
            function.set_outputs(list(results) if isinstance(results, list | tuple) else [results])
        program.add_function("main", function)
        package = folder / f"program_{next(numbers)}.mlpackage"
        with _conversion():
            coremltools.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=version,
                compute_precision=coremltools.precision.FLOAT32,
                pass_pipeline=coremltools.PassPipeline.EMPTY,
                skip_model_load=True,
                package_dir=str(package),
                **settings,
            )
        return package

    return save


@pytest.fixture(scope="session")
def compute(save_program: Callable[..., Path]) -> Callable[..., list[np.ndarray]]:
    """Runs `body(**feed)` in the interpreter and gives its outputs in order."""

    def compute(
        body: Body, feed: dict[str, np.ndarray], *, target: str = "iOS17", **settings: object
    ) -> list[np.ndarray]:
        program = open_program(save_program(body, feed, target=target))
        return list(run(program, feed, **settings).values())  # type: ignore[arg-type]

    return compute


@pytest.fixture(scope="session")
def define() -> Callable[..., list[np.ndarray]]:
    """What coremltools itself infers for `body(**feed)`, its inputs being constants."""

    def define(
        body: Callable[..., Var | Sequence[Var]],
        feed: dict[str, np.ndarray],
        *,
        target: str = "iOS17",
    ) -> list[np.ndarray]:
        with Function({}, opset_version=getattr(coremltools.target, target)):
            results = body(**feed)
        outputs: Sequence[Var] = results if isinstance(results, list | tuple) else [results]
        return [np.asarray(output.val) for output in outputs]

    return define
