"""A bisection as lines: what the error is, what carries how much of it, and what follows."""

import math
from collections.abc import Iterator, Sequence

from triptych.parity.bisect import (
    NOISE_RATIO,
    BisectReport,
    Likeness,
    Section,
    Share,
    Trial,
    percent_text,
)
from triptych.parity.lines import verdict_line


def section_lines(report: BisectReport, section: Section) -> Iterator[str]:
    """All that a section has to say but for its verdict."""
    noise = NOISE_RATIO * section.self_difference
    yield f"two runs of the candidate differ by {_number(section.self_difference)}" + (
        f": up to {_number(noise)} is noise" if noise else ""
    )
    yield from _table(
        [(share.name, _share_text(share, section.subject)) for share in section.shares]
    )
    trials = {trial.name: trial for trial in section.trials}
    yield from _table(
        [(one.name, _likeness_text(one, trials[one.name])) for one in section.likenesses]
    )
    yield from _table([(trial.name, _trial_text(trial)) for trial in _lone_trials(report, section)])


def whole_line(section: Section) -> str:
    """The candidate as it is: the comparison furthest from passing."""
    return verdict_line(section.row, declared=section.row.precision)


def _lone_trials(report: BisectReport, section: Section) -> tuple[Trial, ...]:
    """Those that are no side of a share: the levels of passes; everything in float32."""
    match report.what:
        case "passes":
            return (section.whole, *section.trials[:4])
        case "precision":
            return (section.whole, *section.trials[:1])
        case "components" | "export":
            return ()


def _table(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        yield f"{name:<{width}}  {text}"


def _number(value: float) -> str:
    """A distance for people; without end where the run had none."""
    return f"{value:.1e}" if math.isfinite(value) else "a stopped run"


def _share_text(share: Share, subject: str) -> str:
    noise = "  noise" if share.is_noise else ""
    part = percent_text(share.share)
    if share.alone is None:
        return f"without it {_number(share.without)} ({part} of the {subject}'s error goes){noise}"
    return (
        f"alone brings {_number(share.alone)} ({part} of the {subject}'s error)  "
        f"without it {_number(share.without)}{noise}"
    )


def _likeness_text(likeness: Likeness, trial: Trial) -> str:
    if trial.stopped_by:
        return f"not run: {trial.stopped_by}"
    cosine = "" if likeness.error_cosine is None else f"  cosine {likeness.error_cosine:.3f}"
    alike = {"same": "  the same", "size": "  of one size", "other": ""}[likeness.kind]
    return f"error {_number(likeness.error)}  sizes {likeness.closeness:.2f}{cosine}{alike}"


def _trial_text(trial: Trial) -> str:
    if trial.stopped_by:
        return f"not run: {trial.stopped_by}"
    ran = f"  ran={trial.ran}" if trial.ran else ""
    return f"error {_number(trial.error)}{ran}"
