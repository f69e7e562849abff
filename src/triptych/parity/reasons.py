"""Why a difference between two machines or runs may change numbers, and how likely it does."""

import re
from dataclasses import dataclass
from typing import final

from triptych.parity.facts import FactKind


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What is known of a kind of difference.

    Attributes:
        weight: 0 for the one of its kind that is most likely to change numbers.
        why: why it matters.
    """

    weight: int
    why: str


_COSTS = (
    (r"int8|palette", "compressed weights cost 1e-2 and more"),
    (r"bf16|bfloat16", "bfloat16 costs about 1e-2, float32 1e-6"),
    (r"tf32", "TF32 costs about 1e-3, float32 1e-6"),
    (r"fp16|float16|\bf16\b", "float16 costs about 1e-3, float32 1e-6"),
)
"""Relative L2 of an SDXL U-Net's output. Source: the floors in `parity/limits.py`; for TF32,
PyTorch 2.13, notes/numerical_accuracy."""

_ROUNDING = Reason(weight=6, why="another order of summation: differences of rounding")
_REASONS: dict[FactKind, tuple[tuple[str, Reason], ...]] = {
    "precondition": (
        (r"feeds of", Reason(weight=1, why="other inputs were fed")),
        (r"", Reason(weight=0, why="not the same run: other numbers are to be expected")),
    ),
    "setting": ((r"", Reason(weight=0, why="another run: other numbers are to be expected")),),
    "execution": (
        (r"^engines$", Reason(weight=7, why="rows of one alone have no counterpart")),
        (r" nodes$", Reason(weight=1, why="how many operators ran in what")),
        (r"threads|loaded_from_cache", _ROUNDING),
        (r" version$", Reason(weight=4, why="another engine: other kernels")),
        (r" device$", Reason(weight=2, why="another device: other kernels")),
        (r"", Reason(weight=3, why="an engine's option: other arithmetic or other fusions")),
    ),
    "engine": ((r"", Reason(weight=0, why="another version: other kernels and fusions")),),
    "machine": (
        (r"bf16", Reason(weight=0, why="with it, engines compute in bfloat16 unasked")),
        (r"GPU|processor$|devices$", Reason(weight=1, why="other kernels are chosen for it")),
        (r"system|number of", Reason(weight=3, why="other libraries and numbers of threads")),
        (r"", Reason(weight=2, why="other instructions: another order of summation")),
    ),
    "environment": ((r"", Reason(weight=0, why="engines read it to decide how they compute")),),
    "package": (
        (r"^triptych$", Reason(weight=0, why="the sampler and the judge themselves")),
        (r"^python$", Reason(weight=2, why="changes no number by itself")),
        (r"", Reason(weight=1, why="decides how networks are exported, or what they are fed")),
    ),
}
"""By kind, the first pattern that is found in a name."""


def why_a_fact_matters(kind: FactKind, name: str, values: tuple[str, str]) -> Reason:
    """What a difference of this kind and name can do.

    Args:
        kind: of the fact.
        name: of the fact.
        values: what the two documents tell.
    """
    if kind == "execution" and re.search(r"precision$|float32 models on|precision_hint$", name):
        for pattern, why in _COSTS:
            if re.search(pattern, " ".join(values)):
                return Reason(weight=1 if "declared" in name else 0, why=why)
    return next(reason for pattern, reason in _REASONS[kind] if re.search(pattern, name))
