"""How the contracts ask: a question answered with no is a CheckFailedError that says where."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from triptych.errors import CheckFailedError, TriptychError


def require(condition: bool, where: str, actual: str, expected: str) -> None:  # noqa: FBT001
    """Raise unless a clause holds."""
    if not condition:
        raise CheckFailedError(f"{where}: got {actual}, want {expected}.")


def require_error(
    call: Callable[[], object], kind: type[TriptychError], *, where: str, when: str
) -> TriptychError:
    """The error of one kind that a call must raise; anything else breaks the contract."""
    try:
        call()
    except kind as error:
        return error
    except Exception as error:
        raise CheckFailedError(
            f"{where}, {when}: got {type(error).__name__}: {error}, want {kind.__name__}."
        ) from error
    raise CheckFailedError(f"{where}, {when}: got no error, want {kind.__name__}.")


def digests(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
