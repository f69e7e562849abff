from collections.abc import Iterator

import pytest

from triptych import errors
from triptych.errors import (
    BackendError,
    BrokenInputError,
    CheckFailedError,
    MissingDependencyError,
    NonFiniteError,
    OutputError,
    TensorMismatchError,
    TriptychError,
    UsageError,
)


def family(root: type[TriptychError]) -> Iterator[type[TriptychError]]:
    if root.__module__ == errors.__name__:
        yield root
    for kind in root.__subclasses__():
        yield from family(kind)


CLASSES = tuple(family(TriptychError))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_the_exit_code_of_its_branch(kind: type[TriptychError]) -> None:
    codes = {
        UsageError: 2,
        BrokenInputError: 3,
        CheckFailedError: 1,
        BackendError: 4,
        OutputError: 4,
    }
    branch = [code for root, code in codes.items() if root in kind.__mro__]
    expected = branch[0] if branch else 1
    assert kind.exit_code == expected
    assert len(branch) <= 1


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    names = {kind.__name__ for kind in CLASSES}
    documented = (errors.__doc__ or "").split()
    assert names == {word for word in documented if word.endswith("Error")}


def test_a_mismatch_says_where_what_was_got_and_what_was_wanted() -> None:
    error = TensorMismatchError(
        component="unet", tensor="sample", actual="int64 [1]", expected="float32 [2]", hint="Cast."
    )
    assert str(error) == "unet 'sample': got int64 [1], want float32 [2]. Cast."
    assert (error.component, error.tensor) == ("unet", "sample")
    assert (error.actual, error.expected) == ("int64 [1]", "float32 [2]")


def test_a_mismatch_without_a_hint_ends_after_what_was_wanted() -> None:
    error = TensorMismatchError(component="unet", tensor="x", actual="a", expected="b")
    assert str(error) == "unet 'x': got a, want b."


def test_non_finite_counts() -> None:
    error = NonFiniteError(component="unet", tensor="noise_pred", count=3, size=12, hint="Try.")
    assert (error.component, error.tensor, error.count, error.size) == ("unet", "noise_pred", 3, 12)
    assert "got 3 of 12 elements NaN or infinite" in str(error)


def test_a_missing_dependency_says_how_to_install_it() -> None:
    error = MissingDependencyError(package="onnx", extra="onnxruntime")
    assert (error.package, error.extra) == ("onnx", "onnxruntime")
    assert "pip install 'triptych[onnxruntime]'" in str(error)
