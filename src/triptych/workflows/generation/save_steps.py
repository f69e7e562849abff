"""Which steps are saved, and how many a run of one sampler spares beside a run for each."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepArithmetic:
    """Steps of the sampler for pictures after several numbers of steps.

    A picture after k steps of a long schedule is not that of a schedule of k steps: it still has
    noise in it. What is counted is what both ways cost.

    Attributes:
        num_pictures: runs of the sampler.
        steps_separately: for one picture, were every saved step a run of its own.
        steps_together: for one picture, in one run that ends at the last saved step.
    """

    num_pictures: int
    steps_separately: int
    steps_together: int

    @property
    def total_separately(self) -> int:
        """Steps for all pictures, a run for each saved step."""
        return self.num_pictures * self.steps_separately

    @property
    def total_together(self) -> int:
        """Steps for all pictures, one run each."""
        return self.num_pictures * self.steps_together

    @property
    def ratio(self) -> float:
        """How many times fewer steps."""
        return self.steps_separately / self.steps_together

    @property
    def share_spared(self) -> float:
        """The part of the steps that one run spares, 0 to 1."""
        return 1 - self.steps_together / self.steps_separately


def check_saved_steps(save_steps: Collection[int], *, max_inference_steps: int) -> tuple[int, ...]:
    """The steps to save, sorted, each once.

    Raises:
        UsageError: no steps, or one that the run does not have: its picture would never be there,
            and the dataset never complete.
    """
    if max_inference_steps < 1:
        raise UsageError(f"max_inference_steps: got {max_inference_steps}, want at least 1.")
    if not save_steps:
        raise UsageError("save steps: got none, want at least one.")
    outside = sorted(step for step in set(save_steps) if not 1 <= step <= max_inference_steps)
    if outside:
        raise UsageError(
            f"save steps: got {', '.join(map(str, outside))}, want 1 to {max_inference_steps}, "
            "the steps of a run. Raise --max-inference-steps or leave them out."
        )
    return tuple(sorted(set(save_steps)))


def step_arithmetic(save_steps: Collection[int], *, num_pictures: int) -> StepArithmetic:
    """What saving several steps of one run costs, and what a run for each would."""
    return StepArithmetic(
        num_pictures=num_pictures,
        steps_separately=sum(save_steps),
        steps_together=max(save_steps),
    )
