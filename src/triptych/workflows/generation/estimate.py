"""How long a dataset will still take, by what its pictures have taken so far."""

from triptych.workflows.generation.generate import Generation
from triptych.workflows.generation.ledger import read_ledgers


def seconds_left(generation: Generation) -> float | None:
    """Seconds of sampling that are left, shared out over the workers; None where nothing tells.

    Every record has the seconds of its picture's run, which went to the last of its steps. Records
    of other settings, and of runs for a few missing steps, make it a guess.
    """
    request, plan = generation.request, generation.plan
    ledger = read_ledgers(request.output)
    runs = {
        (record.id, record.n): (record.step, record.seconds)
        for records in ledger.by_path.values()
        for record in records[:1]
        if record.step == max(plan.save_steps)
    }
    steps = sum(step for step, _ in runs.values())
    if not steps:
        return None
    seconds_a_step = sum(seconds for _, seconds in runs.values()) / steps
    return plan.num_steps_to_do * seconds_a_step / request.num_workers
