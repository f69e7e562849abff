"""Causes that would explain what a check saw: hypotheses, each with a command that would tell."""

from collections.abc import Sequence

from triptych.parity.report import Hint, Row


def find_hints(rows: Sequence[Row]) -> tuple[Hint, ...]:
    """What may be wrong, the most certain first."""
    return ()
