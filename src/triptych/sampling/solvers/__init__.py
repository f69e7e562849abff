"""Solvers of the sampling equation: one file each, found by the diffusers class they stand for."""

from collections.abc import Mapping

from triptych.errors import ScheduleError
from triptych.sampling.solvers.base import Solver
from triptych.sampling.solvers.euler import EulerSolver

_SOLVERS: Mapping[str, Solver] = {"EulerDiscreteScheduler": EulerSolver()}


def solver_for(class_name: str) -> Solver:
    """The solver that a scheduler_config.json names.

    Raises:
        ScheduleError: there is none of that name.
    """
    if class_name not in _SOLVERS:
        raise ScheduleError(
            f"scheduler: got {class_name!r}, want one of {', '.join(sorted(_SOLVERS))}. "
            "Change _class_name in the bundle's scheduler/scheduler_config.json."
        )
    return _SOLVERS[class_name]
