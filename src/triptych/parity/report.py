"""A check's outcome as values: rows of evidence, each with its verdict, and the verdict of all.

What `check --json` prints is these dataclasses, field by field (`parity/report_file.py`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, final, get_args

from triptych.parity.compare import Comparison
from triptych.parity.fingerprint import Fingerprint
from triptych.runtimes.base import Execution
from triptych.types import ComponentName, FormatName, Precision, Verdict

SCHEMA_VERSION = 1

Stage: TypeAlias = Literal[
    "contract",
    "precondition",
    "precision",
    "finiteness",
    "component",
    "teacher_forced",
    "free_running",
    "self_state",
    "image",
]
"""contract: what the format's own clients insist on, read from the files. precondition: what must
be exactly equal before numbers mean anything. precision: what a network declares to compute in,
against what it was seen to run in. finiteness: no NaN, no infinity. component: one network on one
feed. teacher_forced (L): the U-Net on the reference's own latents. free_running (F): the
candidate's own run. self_state (S): the U-Net against the reference's U-Net, both on the
candidate's latents. image: its picture, as floats."""

STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order in which they are looked at."""

Branch: TypeAlias = Literal["unconditional", "conditional", "guided"]
"""Which half of a guidance batch, or the two put together."""

LimitSource: TypeAlias = Literal["constant", "floor", "budget"]
"""constant: `parity/limits.py`. floor: measured, what the same precision costs in PyTorch. budget:
a file that somebody looked at and committed."""


SettingValue: TypeAlias = str | int | float | tuple[str | int, ...] | None
"""What a setting of a run can be in a report."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison, or the reason why there is none. What was not measured is None or empty.

    Attributes:
        stage: what was compared.
        component: which network, or the one that the run is about.
        case: what was fed.
        tensor: which output.
        branch: which half of a guidance batch.
        step: steps taken, in a trajectory.
        timestep: what the U-Net was told.
        sigma: noise level of the latents that it was given.
        precision: the class that the candidate is judged in.
        ran: the arithmetic that the engine reports.
        shape: of both tensors.
        size: how many elements each has.
        finite_actual: whether every element of the candidate is finite.
        finite_expected: whether every element of the reference is finite.
        rel_l2: ‖actual - expected‖ / ‖expected‖.
        cosine: cosine similarity.
        psnr_db: decibels, peak max|expected|; of an image, the span of its values, 2.
        ssim: structural similarity of an image.
        metrics: of an image, what users measure besides, by name.
        max_abs: max|actual - expected|, in the tensor's own unit.
        max_abs_index: where that is.
        p99_abs: 99th percentile of |actual - expected|.
        rms_expected: rms of the reference.
        bias: mean(actual - expected) / rms(expected).
        denoised_rel_l2: relative L2 of the estimates of x0, which does not shrink with sigma.
        gain: error of a free run over the error that the steps' own errors would add up to. Below
            1 the run forgives, far above 1 it branches.
        error_cosine: cosine of this step's error with the one before: near 0 is rounding, near 1 a
            wrong constant.
        additive_rel_l2: what the steps' own errors would add up to, relative to the latents.
        limit: relative L2 that still passes.
        warn_limit: relative L2 that still passes with a warning.
        limit_source: where the limits come from.
        floor: relative L2 that the same precision costs in PyTorch.
        ratio: rel_l2 / floor.
        verdict: passed, warned, failed or not_run.
        reason: why it warned, failed or did not run.
        feed_sha256: of the inputs.
        actual_sha256: of the candidate's output.
    """

    stage: Stage
    component: ComponentName
    case: str
    tensor: str = ""
    branch: Branch | None = None
    step: int | None = None
    timestep: float | None = None
    sigma: float | None = None
    precision: Precision
    ran: str = ""
    shape: tuple[int, ...] = ()
    size: int = 0
    finite_actual: bool | None = None
    finite_expected: bool | None = None
    rel_l2: float | None = None
    cosine: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    max_abs: float | None = None
    max_abs_index: tuple[int, ...] = ()
    p99_abs: float | None = None
    rms_expected: float | None = None
    bias: float | None = None
    denoised_rel_l2: float | None = None
    gain: float | None = None
    error_cosine: float | None = None
    additive_rel_l2: float | None = None
    limit: float | None = None
    warn_limit: float | None = None
    limit_source: LimitSource | None = None
    floor: float | None = None
    ratio: float | None = None
    verdict: Verdict = "not_run"
    reason: str = ""
    feed_sha256: str = ""
    actual_sha256: str = ""

    @property
    def has_numbers(self) -> bool:
        """Whether two tensors were compared."""
        return self.rel_l2 is not None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A cause that would explain what was seen: a hypothesis, never a fact.

    Attributes:
        cause: what may be wrong.
        evidence: the rows that speak for it, in words.
        confirm: a command that would tell.
    """

    cause: str
    evidence: str
    confirm: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReport:
    """One engine on one bundle, against the reference.

    Attributes:
        runtime: the engine, with its device where one was asked for.
        bundle: the folder, as it was given.
        format: of the bundle.
        executions: what each component ran on.
        self_difference: relative L2 between two runs of one component on one feed: what the engine
            does not determine.
        rows: the evidence, in the order of the stages.
        first_divergent_step: the first step of the free run that failed.
        hints: what may be the cause.
        unavailable: why the engine could not run here at all; empty where it did.
        verdict: of all rows.
    """

    runtime: str
    bundle: str
    format: FormatName
    executions: Mapping[ComponentName, Execution] = field(default_factory=dict)
    self_difference: Mapping[ComponentName, float] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    first_divergent_step: int | None = None
    hints: tuple[Hint, ...] = ()
    unavailable: str = ""
    verdict: Verdict = "not_run"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OddOneOut:
    """The reference and all engines, each compared with each on the last latents.

    Attributes:
        participants: their names; the reference is among them, and may be the odd one itself.
        distances: relative L2 between any two.
        odd: who is far from all the others, while those are near each other; empty for nobody.
        factor: its distance to the nearest other, over the median distance among the others.
    """

    participants: tuple[str, ...]
    distances: tuple[tuple[float, ...], ...]
    odd: str = ""
    factor: float = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRecord:
    """What the candidates were compared with.

    Attributes:
        kind: recorded just now from a checkpoint, or read from a golden.
        name: the folder, as it was given.
        created: ISO 8601, UTC.
        execution: what its U-Net ran on.
        fingerprint: the machine it was recorded on.
        floors: the classes of arithmetic whose cost in PyTorch was measured.
    """

    kind: Literal["checkpoint", "golden"]
    name: str
    created: str
    execution: Execution
    fingerprint: Fingerprint
    floors: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """A whole check: one reference, and every candidate that was asked for.

    Attributes:
        schema_version: of this document's layout.
        triptych: the version that made it.
        created: ISO 8601, UTC.
        command: what was typed, to repeat it; empty where it was called from Python.
        reference: what the candidates were compared with.
        fingerprint: this machine.
        settings: of the run, for people.
        preconditions: what was exactly equal, short or as a hash.
        candidates: one report for each engine.
        odd_one_out: where there are two engines or more.
        verdict: of all candidates that could run.
    """

    schema_version: int = SCHEMA_VERSION
    triptych: str
    created: str
    command: tuple[str, ...] = ()
    reference: ReferenceRecord | None
    fingerprint: Fingerprint
    settings: Mapping[str, SettingValue]
    preconditions: Mapping[str, str] = field(default_factory=dict)
    candidates: tuple[CandidateReport, ...]
    odd_one_out: OddOneOut | None = None
    verdict: Verdict


def with_comparison(row: Row, found: Comparison) -> Row:
    """The row with what was measured between two tensors."""
    return replace(
        row,
        tensor=found.tensor,
        shape=found.shape,
        size=found.size,
        finite_actual=found.finite_actual,
        finite_expected=found.finite_expected,
        rel_l2=found.rel_l2,
        cosine=found.cosine,
        psnr_db=found.psnr_db,
        max_abs=found.max_abs,
        max_abs_index=found.max_abs_index,
        p99_abs=found.p99_abs,
        rms_expected=found.rms_expected,
        bias=found.bias,
    )


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """Failed if anything failed; passed or warned only if everything ran.

    Nothing at all has not passed.
    """
    found = set(verdicts)
    if "failed" in found:
        return "failed"
    if "not_run" in found or not found:
        return "not_run"
    return "warned" if "warned" in found else "passed"


def worst_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """For each stage and component the row furthest from passing: what fits a screen."""
    worst: dict[tuple[Stage, ComponentName], Row] = {}
    for row in rows:
        key = (row.stage, row.component)
        if key not in worst or _badness(row) > _badness(worst[key]):
            worst[key] = row
    return tuple(sorted(worst.values(), key=lambda row: STAGES.index(row.stage)))


def smallest_passing(rows: Iterable[Row]) -> dict[tuple[Stage, ComponentName], float]:
    """For each stage and component the smallest relative L2 limit that would pass all its rows.

    Infinity where no limit would: something was not finite, or did not run.
    """
    found: dict[tuple[Stage, ComponentName], float] = {}
    for row in rows:
        if row.limit is None:
            continue
        key = (row.stage, row.component)
        needed = math.inf if row.rel_l2 is None or math.isnan(row.rel_l2) else row.rel_l2
        found[key] = max(found.get(key, 0.0), needed)
    return found


def furthest(rows: Iterable[Row]) -> Row:
    """Of all rows the one furthest from passing."""
    return max(rows, key=_badness)


def _badness(row: Row) -> tuple[int, float]:
    """The verdict, then how much of its limit a row uses up."""
    rank = {"passed": 0, "warned": 1, "not_run": 2, "failed": 3}[row.verdict]
    if row.rel_l2 is None or math.isnan(row.rel_l2):
        return rank, math.inf if row.rel_l2 is not None else -1.0
    return rank, row.rel_l2 / row.limit if row.limit else row.rel_l2
