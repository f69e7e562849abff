"""Which network carries how much of the picture's error: one at a time is swapped, both ways."""

from triptych.parity.bisect import Section, carriers_text
from triptych.parity.swap import RECORDED, SwapRuns, component_shares
from triptych.workflows.bisect_ground import Ground, worst_run_row

_CANDIDATE = "candidate"


def component_sections(ground: Ground) -> tuple[Section, ...]:
    """Two runs for each component, beside the candidate's own and its twin.

    Raises:
        BundleError: the bundle lacks a component.
        IncomparableError: the candidate's run is not the reference's.
        BackendError: an engine is missing.
    """
    sides = {_CANDIDATE: ground.side, RECORDED: ground.reference_side}
    runs = SwapRuns(ground.recording, ground.candidate, sides)
    chosen = runs.all_of(_CANDIDATE)
    ground.report("the candidate")
    whole = runs.run(chosen, name=_CANDIDATE)
    ground.report("the candidate again")
    self_difference = runs.self_difference(whole, chosen)
    trials, shares = component_shares(
        runs,
        exact=RECORDED,
        changed=_CANDIDATE,
        whole=whole.trial,
        self_difference=self_difference,
        report=ground.report,
    )
    row = worst_run_row(ground, whole, self_difference=self_difference)
    return (
        Section(
            subject="image",
            row=row,
            self_difference=self_difference,
            whole=whole.trial,
            trials=trials,
            shares=shares,
            conclusion=carriers_text(row, shares),
        ),
    )
