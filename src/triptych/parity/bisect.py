"""What a bisection found, as values: which switch carries how much of a candidate's error.

What `bisect --json` prints is these dataclasses, field by field. How the runs are made is no matter
of this file: it ranks what was measured and says what follows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

from triptych.parity.fingerprint import Fingerprint
from triptych.parity.report import Row, SettingValue
from triptych.types import Verdict

SCHEMA_VERSION = 1

Bisected: TypeAlias = Literal["components", "passes", "precision", "export"]
"""components: one network swapped at a time. passes: what the engine's graph optimiser does.
precision: what the engine computes in. export: how the file was made."""

LikenessKind: TypeAlias = Literal["same", "size", "other"]
"""How far two errors are one: `Likeness.kind`."""

CARRIES = 0.1
"""Part of an error from which a switch is named."""

NOISE_RATIO = 2.0
"""Times the difference of two equal runs up to which a difference is called noise."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run, with some switches set otherwise.

    Attributes:
        name: what was set otherwise.
        error: relative L2 from the reference; infinity where it did not come to its end.
        distances: relative L2 from the reference, of each output of each case.
        ran: the arithmetic that the engine reports.
        switches: what the engine was told, where that says more than the name.
        stopped_by: why it did not come to its end; empty where it did.
    """

    name: str
    error: float
    distances: Mapping[str, float] = field(default_factory=dict)
    ran: str = ""
    switches: Mapping[str, str] = field(default_factory=dict)
    stopped_by: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How much of the error one switch carries, seen from both sides.

    Attributes:
        name: the switch: a component, a pass, a property.
        alone: the error that it brings where all others are exact, beyond what is there with all
            of them exact; None where it cannot be alone.
        without: the error that is left where it alone is exact.
        share: part of the whole error that it brings alone, or that goes with it where it cannot be
            alone. The shares of several need not add up to 1.
        is_noise: it is no more than two equal runs differ by.
    """

    name: str
    alone: float | None
    without: float
    share: float
    is_noise: bool

    @property
    def carries(self) -> bool:
        """Whether it is to be named."""
        return self.share >= CARRIES and not self.is_noise


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How much the error of a variation is the candidate's own error.

    Attributes:
        name: the variation.
        error: its relative L2 from the reference.
        error_cosine: cosine of the two errors, of all outputs of all cases: 1 for the same error,
            near 0 for two roundings of one size; None where one of them has no error.
        closeness: 1 - ‖a - b‖ / max(‖a‖, ‖b‖) of both errors' sizes over the cases: 1 where every
            case is as far off as with the other.
        kind: same: as large in every case, and at the same elements. size: as large, but elsewhere:
            another rounding of that kind, or chance. other: neither.
    """

    name: str
    error: float
    error_cosine: float | None
    closeness: float
    kind: LikenessKind


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One error, and what carries it.

    Attributes:
        subject: what the error is of: the image, or a component.
        row: of the candidate as it is, the comparison furthest from passing.
        self_difference: relative L2 between two equal runs of the candidate.
        whole: the candidate as it is.
        trials: every run that was made beside it.
        shares: the switches, what carries most first.
        likenesses: the variations, the most alike first.
        conclusion: what follows, in words.
    """

    subject: str
    row: Row
    self_difference: float
    whole: Trial
    trials: tuple[Trial, ...]
    shares: tuple[Share, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
    conclusion: str

    @property
    def needs_explaining(self) -> bool:
        """Whether the candidate does not keep its limits."""
        return self.row.verdict not in ("passed", "warned")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BisectReport:
    """A whole bisection.

    Attributes:
        schema_version: of this document's layout.
        triptych: the version that made it.
        created: ISO 8601, UTC.
        command: what was typed, to repeat it; empty where it was called from Python.
        what: what was bisected.
        runtime: the candidate's engine.
        bundle: the candidate's folder, as it was given.
        reference: the checkpoint, as it was given.
        fingerprint: this machine.
        settings: of the run.
        sections: the errors that were looked at.
        verdict: of the candidate as it is.
    """

    schema_version: int = SCHEMA_VERSION
    triptych: str
    created: str
    command: tuple[str, ...] = ()
    what: Bisected
    runtime: str
    bundle: str
    reference: str
    fingerprint: Fingerprint
    settings: Mapping[str, SettingValue]
    sections: tuple[Section, ...]
    verdict: Verdict


def worst(errors: Iterable[float]) -> float:
    """The greatest error; infinity where one is NaN, or there is none at all."""
    found = list(errors)
    return math.inf if not found or any(map(math.isnan, found)) else max(found)


def part_of(error: float, whole: float) -> float:
    """Which part of a whole error another is. Of one without end, all that has none either."""
    if not math.isfinite(whole):
        return 0.0 if math.isfinite(error) else 1.0
    if whole == 0:
        return 0.0 if error == 0 else math.inf
    return error / whole


def make_share(
    name: str,
    *,
    alone: float | None,
    without: float,
    whole: float,
    self_difference: float,
    exact: float = 0.0,
) -> Share:
    """What one switch carries of the whole error.

    Args:
        name: the switch.
        alone: the error with it, where all others are exact; None where that cannot be.
        without: the error where it alone is exact.
        whole: the error with all of them.
        self_difference: between two equal runs.
        exact: the error where all of them are exact: none of theirs.
    """
    brought = _taken_away(without, whole) if alone is None else _taken_away(exact, alone)
    return Share(
        name=name,
        alone=None if alone is None else brought,
        without=without,
        share=part_of(brought, whole),
        is_noise=brought <= NOISE_RATIO * self_difference,
    )


def _taken_away(without: float, whole: float) -> float:
    """What of an error goes; nothing where it only grows."""
    if math.isfinite(whole):
        return max(0.0, whole - without)
    return math.inf if math.isfinite(without) else 0.0


def ranked(shares: Iterable[Share]) -> tuple[Share, ...]:
    """What carries most, first; of equals, what leaves least behind."""
    return tuple(sorted(shares, key=lambda one: (-one.share, one.without)))


def carriers_text(row: Row, shares: Sequence[Share]) -> str:
    """What carries an error, in words."""
    if row.verdict in ("passed", "warned"):
        return "nothing to explain: the candidate keeps its limits"
    named = [one for one in shares if one.carries]
    if not named:
        return "none of them alone: the error shows only where several meet, or lies elsewhere"
    parts = ", ".join(f"{one.name} ({percent_text(one.share)})" for one in named)
    return f"the error is carried by {parts}"


def percent_text(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else "more than all"
