"""From what was measured to a verdict: which limit a row is held to, and whether it keeps it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import final

from triptych.parity.budget import Budget
from triptych.parity.floors import FloorTable, arithmetic_of
from triptych.parity.limits import COMPONENT_REL_L2, TRAJECTORY_REL_L2, guided_limit
from triptych.parity.report import Row
from triptych.types import ComponentName, Verdict

PASS_RATIO = 2.0
"""Times the floor that passes: two roundings of one size, from two orders of summing, differ by
little more than chance.

Source: Huawei's msProbe, RMSE at most 2, 1.5 and 1.2 times another chip's, by class of operator."""

WARN_RATIO = 4.0
"""Times the floor up to which it is a warning. On a U-Net of 48.5 million parameters the bf16 that
OpenVINO chooses was at 3.8 times what bf16 costs in PyTorch."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Everything that decides a limit.

    Attributes:
        runtime: the engine that is judged.
        guidance_scale: of the run, which multiplies errors.
        floors: what a precision costs in PyTorch; first.
        budget: what somebody accepted; where there is no floor.
        self_difference: between two runs of the same; nobody can be nearer than that.
    """

    runtime: str
    guidance_scale: float
    floors: FloorTable = field(default_factory=FloorTable)
    budget: Budget = field(default_factory=Budget)
    self_difference: Mapping[ComponentName, float] = field(default_factory=dict)


def judged(row: Row, gates: Gates) -> Row:
    """The row with its limits and its verdict. One without numbers keeps what it has."""
    if row.rel_l2 is None:
        return row
    limited = _limited(row, gates)
    verdict, reason = _verdict(limited)
    return replace(limited, verdict=verdict, reason=reason)


def _limited(row: Row, gates: Gates) -> Row:
    constant = _constant(row, gates.guidance_scale)
    # More than that is a fault of its own, and excuses nothing.
    noise = min(PASS_RATIO * gates.self_difference.get(row.component, 0.0), constant)
    floor = gates.floors.floor_of(row)
    if floor is not None:
        # Where a component was not computed in the class, as the VAE, its floor is 0.
        exact = max(_constant(replace(row, precision="fp32"), gates.guidance_scale), noise)
        return replace(
            row,
            floor=floor,
            ratio=_ratio(row.rel_l2, floor),
            limit=max(PASS_RATIO * floor, exact),
            warn_limit=max(_warn_ratio(row) * floor, exact),
            limit_source="floor",
        )
    accepted = gates.budget.limit_of(row, runtime=gates.runtime)
    limit = max(constant if accepted is None else accepted, noise)
    return replace(
        row,
        floor=None,
        ratio=None,
        limit=limit,
        warn_limit=limit,
        limit_source="constant" if accepted is None else "budget",
    )


def _warn_ratio(row: Row) -> float:
    """None for weights that are rounded alike: the error is the same, not only of one size."""
    is_exact = arithmetic_of(row.precision, row.ran) == "fp16_weights"
    return PASS_RATIO if is_exact else WARN_RATIO


def _constant(row: Row, guidance_scale: float) -> float:
    match row.stage:
        case "teacher_forced" | "self_state":
            return guided_limit(row.precision, guidance_scale)
        case "free_running" | "image":
            return TRAJECTORY_REL_L2[row.precision]
        case _:
            return COMPONENT_REL_L2[row.precision]


def _ratio(rel_l2: float | None, floor: float) -> float | None:
    return rel_l2 / floor if rel_l2 is not None and floor > 0 else None


def _verdict(row: Row) -> tuple[Verdict, str]:
    """Asked as "is it close", never as "is it far": every question about a NaN is answered no."""
    if not (row.finite_actual and row.finite_expected):
        return "failed", "got NaN or infinity"
    assert row.rel_l2 is not None  # noqa: S101  `judged` holds it
    assert row.limit is not None  # noqa: S101  as set above
    assert row.warn_limit is not None  # noqa: S101  as set above
    if math.isfinite(row.rel_l2) and row.rel_l2 <= row.limit:
        return "passed", ""
    if math.isfinite(row.rel_l2) and row.rel_l2 <= row.warn_limit:
        return "warned", f"relative L2 {row.rel_l2:.1e} is {_times(row)} what {_class(row)} costs"
    if row.limit_source == "floor":
        return "failed", (
            f"relative L2 {row.rel_l2:.1e} is {_times(row)} what {_class(row)} costs in PyTorch, "
            f"{row.floor:.1e}"
        )
    return "failed", f"relative L2 {row.rel_l2:.1e} is over {row.limit:.1e}"


def _times(row: Row) -> str:
    return f"{row.ratio:.1f} times" if row.ratio is not None else "far more than"


def _class(row: Row) -> str:
    return f"{row.precision} weights" if row.ran == "fp32" else row.precision
