"""A file of limits that somebody looked at and committed: what is normal for these bundles.

It counts where no floor was measured: for int8 and palettes, whose cost PyTorch cannot show, and
for float32 of a model so deep that the built-in limits are too narrow. `check --accept` writes it,
and the change is a diff in a review.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, final

import msgspec

from triptych.bundle.store import write_file
from triptych.errors import BrokenInputError
from triptych.parity.fingerprint import Fingerprint
from triptych.parity.report import Row, Stage
from triptych.types import ComponentName, Precision

BUDGET_SCHEMA_VERSION = 1

HEADROOM = 1.5
"""Limit over what was measured: another processor sums in another order."""

_Key: TypeAlias = tuple[str, Precision, Stage, ComponentName, str]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetEntry:
    """One limit.

    Attributes:
        runtime: the engine it is for, with its device where one was asked for.
        precision: the class it is for.
        stage: of the rows that it limits.
        component: of those rows.
        tensor: of those rows.
        measured: the largest relative L2 that was seen.
        limit: the relative L2 that passes.
        accepted: the day, ISO 8601.
        machine: the processor and the versions that it was measured with.
    """

    runtime: str
    precision: Precision
    stage: Stage
    component: ComponentName
    tensor: str
    measured: float
    limit: float
    accepted: str
    machine: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """All limits of a file.

    Attributes:
        schema_version: of the file's layout.
        entries: sorted.
    """

    schema_version: int = BUDGET_SCHEMA_VERSION
    entries: tuple[BudgetEntry, ...] = field(default=())

    def limit_of(self, row: Row, *, runtime: str) -> float | None:
        """The limit of a row; None where the file has none."""
        wanted = (runtime, row.precision, row.stage, row.component, row.tensor)
        for entry in self.entries:
            if _key(entry) == wanted:
                return entry.limit
        return None


def accepted(budget: Budget, rows: Mapping[str, Iterable[Row]], fingerprint: Fingerprint) -> Budget:
    """The budget with what was measured; entries about other rows stay.

    Rows that are held to a measured floor, and those that were not finite, are left out: a budget
    does not excuse them.

    Args:
        budget: before.
        rows: what was measured, by engine.
        fingerprint: of the machine it was measured on.
    """
    today = datetime.now(UTC).date().isoformat()
    worst: dict[_Key, float] = {}
    for runtime, measured in rows.items():
        for row in measured:
            is_ours = row.limit_source in ("constant", "budget") and row.finite_actual
            if is_ours and row.rel_l2 is not None:
                key = (runtime, row.precision, row.stage, row.component, row.tensor)
                worst[key] = max(worst.get(key, 0.0), row.rel_l2)
    entries = {_key(entry): entry for entry in budget.entries}
    for key, rel_l2 in worst.items():
        runtime, precision, stage, component, tensor = key
        entries[key] = BudgetEntry(
            runtime=runtime,
            precision=precision,
            stage=stage,
            component=component,
            tensor=tensor,
            measured=rel_l2,
            limit=float(f"{rel_l2 * HEADROOM:.3g}"),
            accepted=today,
            machine=_machine(fingerprint, runtime),
        )
    return Budget(entries=tuple(entries[key] for key in sorted(entries)))


def read_budget(path: Path) -> Budget:
    """Read a budget file.

    Raises:
        BrokenInputError: it is missing, of a newer schema, or no such file.
    """
    try:
        budget = msgspec.json.decode(path.read_bytes(), type=Budget)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenInputError(
            f"{path}: got {error}, want a budget that check --accept wrote."
        ) from error
    if budget.schema_version > BUDGET_SCHEMA_VERSION:
        raise BrokenInputError(
            f"{path}: got schema version {budget.schema_version}, want {BUDGET_SCHEMA_VERSION} or "
            "older. Upgrade triptych."
        )
    return budget


def write_budget(budget: Budget, path: Path) -> None:
    """Write a budget file, indented for people and stable for diffs.

    Raises:
        OutputError: it cannot be written.
    """
    write_file(path, msgspec.json.format(msgspec.json.encode(budget), indent=2) + b"\n")


def _key(entry: BudgetEntry) -> _Key:
    return entry.runtime, entry.precision, entry.stage, entry.component, entry.tensor


def _machine(fingerprint: Fingerprint, runtime: str) -> str:
    package = {"pytorch": "torch", "coreml": "coremltools", "coreml-reference": "coremltools"}
    engine = runtime.partition(":")[0]
    name = package.get(engine, engine)
    version = fingerprint.packages.get(name)
    return f"{fingerprint.summary}, {name} {version}" if version else fingerprint.summary
