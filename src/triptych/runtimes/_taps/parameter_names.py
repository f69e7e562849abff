"""Which parameter of a checkpoint a constant of a graph is, as far as its name tells."""

import re
from collections.abc import Iterable
from typing import final

_WRAPPERS = re.compile(r"^self\.(model\.)?")
_MAX_WRAPPERS = 4
_MAX_SUFFIXES = 8


@final
class ParameterNames:
    """The parameters of one component, found by what exporters make of their names.

    ONNX and OpenVINO keep them, with or without the component's prefix, or with "self." and
    optimum-intel's "self.model." before them. coremltools writes
    underscores for dots, puts the names of wrapping modules in front, and behind it "to_fp16",
    "palettized" and the like.

    Attributes:
        prefix: what a component's modules have before their names in the checkpoint.
    """

    def __init__(self, names: Iterable[str], *, prefix: str) -> None:
        """Index the names of parameters, which begin with the prefix."""
        self.prefix = prefix
        self._exact = {name.removeprefix(prefix): name for name in names}
        self._exact |= {name: name for name in self._exact.values()}
        self._flat = {known.replace(".", "_"): name for known, name in self._exact.items()}

    def find(self, constant: str) -> str | None:
        """The parameter's name, or None."""
        bare = _WRAPPERS.sub("", constant)
        if bare in self._exact:
            return self._exact[bare]
        words = constant.split("_")
        for start in range(min(_MAX_WRAPPERS, len(words))):
            for end in range(len(words), max(start, len(words) - _MAX_SUFFIXES), -1):
                found = self._flat.get("_".join(words[start:end]))
                if found is not None:
                    return found
        return None
