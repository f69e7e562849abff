"""The exception tree. Each class knows its exit code; the command line catches only the root.

TriptychError
├── UsageError                 2  the call itself makes no sense
│   ├── ScheduleError             a schedule that cannot be built, or an index outside it
│   └── TokenizerError            text or settings a tokenizer cannot take
├── BrokenInputError           3  what was given cannot be read or compared
│   ├── CheckpointError           a checkpoint that is incomplete, unsafe or not SDXL
│   ├── BundleError               a bundle that is incomplete, corrupt or not one of ours
│   ├── GoldenError               a golden recording that is incomplete or corrupt
│   ├── IncomparableError         two runs whose schedules, tokens or noise differ
│   └── TensorMismatchError       a tensor of another name, shape or dtype than its spec
├── CheckFailedError           1  it ran, and the numbers are wrong
│   ├── NonFiniteError            NaN or infinity came out of a component
│   ├── BlankPictureError         a decoded picture is of one colour
│   └── VerificationError         an exported component disagrees with PyTorch
├── BackendError               4  an engine is missing, or could not run
│   └── MissingDependencyError    an optional package is not installed
└── OutputError                4  what was made could not be written
"""

from typing import ClassVar


class TriptychError(Exception):
    """Root of everything triptych raises on purpose.

    Attributes:
        exit_code: what the command line returns when this error ends a command.
    """

    exit_code: ClassVar[int] = 1


class UsageError(TriptychError):
    """The call itself makes no sense: an unknown name, options that exclude each other."""

    exit_code: ClassVar[int] = 2


class ScheduleError(UsageError):
    """A schedule that cannot be built from these settings, or an index outside it."""


class TokenizerError(UsageError):
    """Text or settings that a tokenizer cannot take."""


class BrokenInputError(TriptychError):
    """What was given cannot be read, or cannot be compared."""

    exit_code: ClassVar[int] = 3


class CheckpointError(BrokenInputError):
    """A checkpoint that is incomplete, unsafe to load, or not SDXL."""


class BundleError(BrokenInputError):
    """A bundle that is incomplete or corrupt."""


class GoldenError(BrokenInputError):
    """A golden recording that is incomplete or corrupt."""


class IncomparableError(BrokenInputError):
    """Two runs that share no ground: their schedules, tokens, noise or models differ.

    Attributes:
        differences: one text each.
    """

    def __init__(self, *, candidate: str, reference: str, differences: tuple[str, ...]) -> None:
        self.differences = differences
        super().__init__(
            f"{candidate}: cannot be compared with {reference}. They differ in "
            f"{'; '.join(differences)}."
        )


class TensorMismatchError(BrokenInputError):
    """A tensor of another name, shape or dtype than its spec.

    Attributes:
        component: the component whose border was crossed, or what was compared.
        tensor: the tensor's name.
        actual: what was got, as text.
        expected: what was wanted, as text.
    """

    def __init__(
        self, *, component: str, tensor: str, actual: str, expected: str, hint: str = ""
    ) -> None:
        self.component = component
        self.tensor = tensor
        self.actual = actual
        self.expected = expected
        message = f"{component} {tensor!r}: got {actual}, want {expected}."
        super().__init__(f"{message} {hint}" if hint else message)


class CheckFailedError(TriptychError):
    """It ran, and the numbers are wrong."""

    exit_code: ClassVar[int] = 1


class NonFiniteError(CheckFailedError):
    """NaN or infinity came out of a component.

    Attributes:
        component: the component that produced it.
        tensor: the output's name.
        count: how many elements are not finite.
        size: how many elements the tensor has.
    """

    def __init__(self, *, component: str, tensor: str, count: int, size: int, hint: str) -> None:
        self.component = component
        self.tensor = tensor
        self.count = count
        self.size = size
        super().__init__(
            f"{component} {tensor!r}: got {count} of {size} elements NaN or infinite, "
            f"want all finite. {hint}"
        )


class BlankPictureError(CheckFailedError):
    """A decoded picture is of one colour, as an overflow leaves it where NaN is cast away."""


class VerificationError(CheckFailedError):
    """An exported component disagrees with the PyTorch component it was made from."""


class BackendError(TriptychError):
    """An engine is missing, lacks what was asked for, or could not run."""

    exit_code: ClassVar[int] = 4


class MissingDependencyError(BackendError):
    """An optional package is not installed.

    Attributes:
        package: the missing distribution.
        extra: the extra of triptych that brings it.
    """

    def __init__(self, *, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is not installed. Run: pip install 'triptych[{extra}]'")


class OutputError(TriptychError):
    """What was made could not be written: a full disk, a quota, a folder without permission."""

    exit_code: ClassVar[int] = 4
