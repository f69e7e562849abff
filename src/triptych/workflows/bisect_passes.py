"""Which passes of ONNX Runtime's graph optimiser carry a component's error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final, get_args

from triptych.errors import UsageError
from triptych.parity.bisect import (
    CARRIES,
    Section,
    Share,
    Trial,
    make_share,
    part_of,
    percent_text,
)
from triptych.parity.candidate import Candidate
from triptych.parity.component_trial import measure_component, try_component
from triptych.parity.delta_debug import smallest_subset
from triptych.parity.report import Row
from triptych.parity.swap import Side
from triptych.runtimes._onnxruntime_passes import OPTIMIZERS
from triptych.runtimes.onnxruntime import GraphOptimization, OnnxRuntime
from triptych.workflows.bisect_ground import Ground, worst_component_row

_REMOVES = 0.9
"""Part of what all passes carry that the named ones must carry."""


def check_passes(candidate: Candidate) -> None:
    """Refuse an engine whose passes cannot be left out.

    Raises:
        UsageError: it is not ONNX Runtime.
    """
    if not isinstance(candidate.runtime, OnnxRuntime):
        raise UsageError(
            f"passes: got {candidate.runtime.name}, want onnxruntime: no other engine lets single "
            "passes be left out. Try `triptych bisect precision` or `triptych bisect export`."
        )


def pass_sections(ground: Ground) -> tuple[Section, ...]:
    """The optimiser's levels; and where they matter, the smallest set of passes that does it.

    Raises:
        BundleError: the component is not there, or cannot be read.
        BackendError: the engine or the device is missing.
    """
    component = ground.request.component
    passes = _Passes(ground=ground)
    ground.report(f"{component}: all passes")
    measured = measure_component(
        ground.recording,
        ground.side,
        component,
        precision=ground.candidate.precisions[component],
        name="all",
    )
    row = worst_component_row(ground, measured)
    whole = measured.trial
    levels = tuple(passes.level(name) for name in reversed(get_args(GraphOptimization)[:-1]))
    section = Section(
        subject=component,
        row=row,
        self_difference=measured.self_difference,
        whole=whole,
        trials=levels,
        conclusion="",
    )
    least = levels[-1]
    if not section.needs_explaining or not part_of(least.error, whole.error) <= 1 - CARRIES:
        return (replace(section, conclusion=_levels_text(row, whole, least)),)
    return (_with_guilty(section, passes, least),)


def _with_guilty(section: Section, passes: "_Passes", least: Trial) -> Section:
    """The smallest set of passes without which the error is gone, and what they bring alone."""
    whole = section.whole

    def is_enough(part: Sequence[str]) -> bool:
        return bool(part) and _is_enough(passes.without(part).error, whole, least)

    guilty = smallest_subset(OPTIMIZERS, is_enough)
    if not guilty:
        return replace(section, conclusion=_unnamed_text(whole, least))
    others = tuple(name for name in OPTIMIZERS if name not in guilty)
    alone, without = passes.without(others), passes.without(guilty)
    share = make_share(
        " with ".join(guilty),
        alone=alone.error,
        without=without.error,
        whole=whole.error,
        self_difference=section.self_difference,
        exact=least.error,
    )
    trials = (*section.trials, replace(alone, name=f"only {share.name}"), without)
    conclusion = _guilty_text(share, whole)
    return replace(section, trials=trials, shares=(share,), conclusion=conclusion)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """Trials of the component on ONNX Runtime, rewritten otherwise."""

    ground: Ground

    def level(self, level: GraphOptimization) -> Trial:
        self.ground.report(f"passes: {level}")
        return self._trial(replace(self._runtime, graph_optimization=level), name=level)

    def without(self, names: Sequence[str]) -> Trial:
        self.ground.report(f"without {len(names)} passes")
        runtime = replace(self._runtime, disabled_optimizers=tuple(names))
        return self._trial(runtime, name=f"all but {', '.join(names)}" if names else "all")

    @property
    def _runtime(self) -> OnnxRuntime:
        runtime = self.ground.candidate.runtime
        assert isinstance(runtime, OnnxRuntime)  # noqa: S101  `check_passes` has seen to it
        return runtime

    def _trial(self, runtime: OnnxRuntime, *, name: str) -> Trial:
        component = self.ground.request.component
        return try_component(
            self.ground.recording,
            Side(bundle=self.ground.candidate.bundle, runtime=runtime),
            component,
            precision=self.ground.candidate.precisions[component],
            name=name,
        ).trial


def _is_enough(error: float, whole: Trial, least: Trial) -> bool:
    """Whether what was left out carries nearly all that passes carry."""
    if not math.isfinite(whole.error):
        return math.isfinite(error)
    return error <= whole.error - _REMOVES * (whole.error - least.error)


def _levels_text(row: Row, whole: Trial, least: Trial) -> str:
    kept = "nothing to explain: the candidate keeps its limits; " if _passes(row) else ""
    return f"{kept}no pass matters: {whole.error:.1e} with all of them, {least.error:.1e} with none"


def _unnamed_text(whole: Trial, least: Trial) -> str:
    return (
        f"passes that have no name bring {whole.error:.1e} where none leaves {least.error:.1e}: "
        "the levels show where"
    )


def _guilty_text(share: Share, whole: Trial) -> str:
    gone = percent_text(1 - part_of(share.without, whole.error))
    return (
        f"{share.name} carries {gone} of the error: without it {share.without:.1e}. "
        "Leave it out with OnnxRuntime(…, disabled_optimizers=(…))"
    )


def _passes(row: Row) -> bool:
    return row.verdict in ("passed", "warned")
