"""Reading the JSON configs beside the weights, with errors that say which file lacks what."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from triptych.errors import CheckpointError

JsonObject: TypeAlias = Mapping[str, object]
"""A JSON object as it was read; values are checked where they are taken out."""

T = TypeVar("T")


def read_json(path: Path) -> dict[str, object]:
    """Read one JSON object.

    Raises:
        CheckpointError: the file is missing, is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: got no such file, want a JSON config.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: got {error}, want a readable JSON config.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}, want a JSON object.")
    return content


def setting(config: JsonObject, name: str, kind: type[T], *, where: str) -> T:
    """Take one setting of a known type out of a config; integers are sizes, and positive.

    Raises:
        CheckpointError: the setting is missing or of another type.
    """
    value = config.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_size = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not isinstance(value, kind) or (kind is int and not is_size):
        wanted = "a positive int" if kind is int else kind.__name__
        raise CheckpointError(
            f"{where} {name!r}: got {value!r}, want {wanted}. "
            "The config is not one that diffusers or transformers wrote for SDXL."
        )
    return value
