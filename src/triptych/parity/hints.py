"""Causes that would explain what a check saw: hypotheses, each with a command that would tell.

Source: known causes of divergence and their signatures; each is a defect that some tool has had.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from triptych.parity.report import Hint, Row, Stage
from triptych.types import ComponentName

_GROWS = 3.0
"""Times between the first timestep and the last from which an error is called one of time."""

_SAME_DIRECTION = 0.9
"""Cosine of one step's error with the next's from which it is called systematic."""

_UNRELATED = 0.5
"""Cosine similarity below which a tensor is called another tensor."""

_Rule: TypeAlias = Callable[[Sequence[Row]], Iterator[Hint]]


def find_hints(rows: Sequence[Row]) -> tuple[Hint, ...]:
    """What may be wrong with a candidate, the most certain first; nothing where all is well."""
    if not any(row.verdict in ("warned", "failed") for row in rows):
        return ()
    return tuple(hint for rule in _RULES for hint in rule(rows))


def _other_precision(rows: Sequence[Row]) -> Iterator[Hint]:
    found = [row for row in rows if row.stage == "precision" and row.verdict == "failed"]
    for row in found[:1]:
        if row.case.startswith("weights"):
            yield Hint(
                cause="the file holds other weights than its manifest says",
                evidence=f"{row.component}: {row.case}",
                confirm="triptych inspect BUNDLE",
            )
        else:
            yield Hint(
                cause="the engine computed in another precision than it was to",
                evidence=f"{row.component}: {row.case}",
                confirm="triptych bisect precision BUNDLE --reference CHECKPOINT",
            )


def _overflow(rows: Sequence[Row]) -> Iterator[Hint]:
    for row in rows:
        is_decoder = row.component == "vae_decoder" and row.stage in ("finiteness", "image")
        if is_decoder and row.verdict == "failed" and not row.has_numbers:
            yield Hint(
                cause="the VAE overflows in half precision",
                evidence=row.reason,
                confirm="triptych export CHECKPOINT OUT --precision fp32 --component vae_decoder",
            )
            return


def _time(rows: Sequence[Row]) -> Iterator[Hint]:
    """The sinusoid's constants in fp16, or a timestep that was rounded: wrong early, right late."""
    steps = [
        row
        for row in _failed(rows, "component", "unet") + _others(rows, "component", "unet")
        if row.timestep is not None and _rel(row) > 0
    ]
    if not _failed(rows, "component", "unet") or len({row.timestep for row in steps}) < 2:
        return
    first = max(steps, key=lambda row: row.timestep or 0)
    last = min(steps, key=lambda row: row.timestep or 0)
    early = max(_rel(row) for row in steps if row.timestep == first.timestep)
    late = min(_rel(row) for row in steps if row.timestep == last.timestep)
    if early > _GROWS * late:
        yield Hint(
            cause="the timestep's or the sizes' sinusoid is rounded",
            evidence=f"unet: {early:.1e} at t={first.timestep:g}, {late:.1e} at "
            f"t={last.timestep:g}",
            confirm="triptych bisect export BUNDLE --reference CHECKPOINT --component unet",
        )


def _pooled(rows: Sequence[Row]) -> Iterator[Hint]:
    wrong = {row.tensor for row in _failed(rows, "component", "text_encoder_2")}
    if wrong == {"text_embeds"}:
        yield Hint(
            cause="the pooled embedding is taken at another token, or not projected",
            evidence="text_encoder_2: text_embeds differ, hidden_states agree",
            confirm="triptych locate BUNDLE --reference CHECKPOINT --component text_encoder_2",
        )


def _another_tensor(rows: Sequence[Row]) -> Iterator[Hint]:
    for row in rows:
        is_other = row.cosine is not None and row.cosine < _UNRELATED
        if row.stage == "component" and row.verdict == "failed" and is_other:
            yield Hint(
                cause="an output is another tensor: swapped, permuted, or of another layer",
                evidence=f"{row.component} {row.tensor}: cosine {row.cosine:.2f}",
                confirm="triptych inspect BUNDLE",
            )
            return


def _scaled(rows: Sequence[Row]) -> Iterator[Hint]:
    for row in rows:
        is_parallel = row.cosine is not None and 1 - row.cosine < 1e-6 and _rel(row) > 1e-4
        if row.stage == "component" and row.verdict == "failed" and is_parallel:
            yield Hint(
                cause="an output is multiplied by a constant",
                evidence=f"{row.component} {row.tensor}: cosine 1 at relative L2 {row.rel_l2:.1e}",
                confirm=f"triptych locate BUNDLE --reference CHECKPOINT --component "
                f"{row.component}",
            )
            return


def _one_branch(rows: Sequence[Row]) -> Iterator[Hint]:
    wrong = {row.branch for row in _failed(rows, "component", "unet") if row.branch is not None}
    if len(wrong) == 1:
        (branch,) = wrong
        yield Hint(
            cause="one half of the guidance batch is treated otherwise",
            evidence=f"unet: only the {branch} half fails",
            confirm="triptych check BUNDLE --reference GOLDEN --json -",
        )


def _systematic(rows: Sequence[Row]) -> Iterator[Hint]:
    cosines = [
        row.error_cosine
        for row in _failed(rows, "teacher_forced", "unet")
        if row.error_cosine is not None
    ]
    if len(cosines) > 1 and (usual := statistics.median_high(cosines)) > _SAME_DIRECTION:
        yield Hint(
            cause="a constant is wrong: rounding points another way at each step",
            evidence=f"errors of neighbouring steps have a cosine of {usual:.2f} in the median",
            confirm="triptych locate BUNDLE --reference CHECKPOINT --component unet",
        )


def _outside_the_networks(rows: Sequence[Row]) -> Iterator[Hint]:
    """Every network is right on the reference's inputs, and the run is not."""
    network: tuple[Stage, ...] = ("finiteness", "component", "teacher_forced")
    diverged = [row for row in rows if row.stage == "free_running" and row.verdict == "failed"]
    if any(row.verdict == "failed" and row.stage in network for row in rows) or not diverged:
        return
    gain = max((row.gain or 0.0 for row in diverged), default=0.0)
    yield Hint(
        cause="the run is wrong and not the networks: the solver, the scaling of latents, "
        "guidance, or a run that branches",
        evidence=f"from step {diverged[0].step} on, with a gain up to {gain:.2g}",
        confirm="triptych check BUNDLE --reference CHECKPOINT --explain --seed 1",
    )


_RULES: tuple[_Rule, ...] = (
    _other_precision,
    _overflow,
    _pooled,
    _another_tensor,
    _scaled,
    _time,
    _one_branch,
    _systematic,
    _outside_the_networks,
)


def _failed(rows: Iterable[Row], stage: Stage, component: ComponentName) -> list[Row]:
    return [
        row
        for row in rows
        if (row.stage, row.component) == (stage, component)
        and row.verdict in ("warned", "failed")
        and row.has_numbers
    ]


def _others(rows: Iterable[Row], stage: Stage, component: ComponentName) -> list[Row]:
    return [
        row
        for row in rows
        if (row.stage, row.component) == (stage, component) and row.verdict == "passed"
    ]


def _rel(row: Row) -> float:
    """Relative L2; 0 where there is none or it is no number, so that no rule rests on it."""
    value = row.rel_l2
    return 0.0 if value is None or not math.isfinite(value) else value
