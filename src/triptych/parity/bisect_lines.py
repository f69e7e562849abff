"""A bisection as lines: what the error is, what carries how much of it, and what follows."""

import math
from collections.abc import Iterator

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
    yield f"two runs of the candidate differ by {number_text(section.self_difference)}" + (
        f": up to {number_text(noise)} is noise" if noise else ""
    )
    if section.shares:
        width = max(len(share.name) for share in section.shares)
        for share in section.shares:
            yield f"{share.name:<{width}}  {_share_text(share, section.subject)}"
    if section.likenesses:
        width = max(len(likeness.name) for likeness in section.likenesses)
        trials = {trial.name: trial for trial in section.trials}
        for likeness in section.likenesses:
            text = _likeness_text(likeness, trials[likeness.name])
            yield f"{likeness.name:<{width}}  {text}"
    # The first trials are no side of a share: the levels of passes, everything in float32.
    lone = {"passes": section.trials[:4], "precision": section.trials[:1]}.get(report.what, ())
    if lone:
        width = max(len(trial.name) for trial in (section.whole, *lone))
        for trial in (section.whole, *lone):
            yield f"{trial.name:<{width}}  {_trial_text(trial)}"


def whole_line(section: Section) -> str:
    """The candidate as it is: the comparison furthest from passing."""
    return verdict_line(section.row, declared=section.row.precision)


def number_text(value: float) -> str:
    """A distance for people."""
    return f"{value:.1e}" if math.isfinite(value) else "no end"


def _share_text(share: Share, subject: str) -> str:
    noise = "  noise" if share.is_noise else ""
    part = percent_text(share.share)
    if share.alone is None:
        return f"with it {number_text(share.without)} is left ({part} goes){noise}"
    return (
        f"alone brings {number_text(share.alone)} ({part} of the {subject}'s error)  "
        f"without it {number_text(share.without)}{noise}"
    )


def _likeness_text(likeness: Likeness, trial: Trial) -> str:
    if trial.stopped_by:
        return f"not run: {trial.stopped_by}"
    cosine = "" if likeness.error_cosine is None else f"  cosine {likeness.error_cosine:.3f}"
    alike = {"same": "  the same", "size": "  of one size", "other": ""}[likeness.kind]
    return f"error {number_text(likeness.error)}  sizes {likeness.closeness:.2f}{cosine}{alike}"


def _trial_text(trial: Trial) -> str:
    if trial.stopped_by:
        return f"not run: {trial.stopped_by}"
    ran = f"  ran={trial.ran}" if trial.ran else ""
    return f"error {number_text(trial.error)}{ran}"
