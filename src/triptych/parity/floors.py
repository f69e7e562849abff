"""What a lower precision costs in PyTorch itself: the scale on which a candidate is judged.

A candidate in fp16 differs from float32 PyTorch, and so does PyTorch in fp16. Only the ratio of the
two tells a healthy engine from a broken one: an absolute limit wide enough for the first passes
errors several times larger than they should be.

Source: three-way comparisons as in AWS Neuron's and Huawei's accuracy tools.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final, get_args

from triptych.parity.report import Branch, Row, Stage
from triptych.types import ComponentName, Precision

Arithmetic: TypeAlias = Literal["fp16", "bf16", "fp16_weights"]
"""What PyTorch computed in to measure a floor. fp16_weights: weights rounded to fp16, and then
float32 arithmetic, which is what several engines do with an fp16 file."""

ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """One measured cost.

    Attributes:
        arithmetic: what PyTorch computed in.
        stage: of the row that it is the scale of.
        component: of that row.
        case: of that row.
        tensor: of that row.
        branch: of that row.
        step: of that row.
        rel_l2: relative L2 from the reference.
    """

    arithmetic: Arithmetic
    stage: Stage
    component: ComponentName
    case: str
    tensor: str
    branch: Branch | None = None
    step: int | None = None
    rel_l2: float


_Kind: TypeAlias = tuple[Arithmetic, Stage, ComponentName, str, Branch | None]
_Place: TypeAlias = tuple[str, int | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FloorTable:
    """Measured floors, to be looked up by rows.

    Attributes:
        floors: by kind of row, and then by case and step.
    """

    floors: Mapping[_Kind, Mapping[_Place, float]] = field(default_factory=dict)

    def floor_of(self, row: Row) -> float | None:
        """The floor of a row; None where none was measured for its arithmetic.

        At least the median over the cases and steps of its kind: a rounding error that happens to
        be small in one of them is luck, which nobody else needs to have.
        """
        arithmetic = arithmetic_of(row.precision, row.ran)
        if arithmetic is None:
            return None
        kind = (row.stage, row.component, row.tensor, row.branch)
        measured = self.floors.get((arithmetic, *kind))
        if measured is None and arithmetic == "fp16_weights":
            measured = self.floors.get(("fp16", *kind))
        if not measured:
            return None
        median = statistics.median(measured.values())
        return max(median, measured.get((row.case, row.step), 0.0))


def arithmetic_of(precision: Precision, ran: str) -> Arithmetic | None:
    """Which of PyTorch's runs a candidate is measured by; None for those that have none."""
    if precision == "fp16":
        return "fp16_weights" if ran == "fp32" else "fp16"
    return "bf16" if precision == "bf16" else None


def floor_table(floors: Iterable[Floor]) -> FloorTable:
    """Floors, sorted for looking up."""
    table: dict[_Kind, dict[_Place, float]] = {}
    for floor in floors:
        kind = (floor.arithmetic, floor.stage, floor.component, floor.tensor, floor.branch)
        table.setdefault(kind, {})[floor.case, floor.step] = floor.rel_l2
    return FloorTable(floors=table)


def floors_from_rows(rows: Iterable[Row], arithmetic: Arithmetic) -> tuple[Floor, ...]:
    """The floors that a check of PyTorch itself, at another precision, gives."""
    return tuple(
        Floor(
            arithmetic=arithmetic,
            stage=row.stage,
            component=row.component,
            case=row.case,
            tensor=row.tensor,
            branch=row.branch,
            step=row.step,
            rel_l2=row.rel_l2,
        )
        for row in rows
        if row.rel_l2 is not None and row.finite_actual
    )
