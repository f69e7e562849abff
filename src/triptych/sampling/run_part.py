"""Which steps of a schedule a run takes: all, or a part of them."""

from dataclasses import dataclass
from typing import final

from triptych.errors import UsageError
from triptych.sampling.schedule import Schedule


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunPart:
    """Steps of a schedule, counted as evaluations of the U-Net.

    Attributes:
        first: index of the first.
        stop: index after the last.
    """

    first: int
    stop: int

    @property
    def num_steps(self) -> int:
        """How many there are."""
        return self.stop - self.first


def whole_run(schedule: Schedule) -> RunPart:
    """Every step."""
    return RunPart(first=0, stop=schedule.num_inference_steps)


def part_by_strength(schedule: Schedule, *, num_inference_steps: int, strength: float) -> RunPart:
    """The last int(num_inference_steps * strength) steps: how much of a picture is made anew.

    Args:
        schedule: the run's.
        num_inference_steps: steps as the user counts them.
        strength: 0 to 1.

    Raises:
        UsageError: strength is outside 0 to 1, or leaves no step.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl_img2img.py, get_timesteps.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength: got {strength:g}, want 0 to 1.")
    taken = min(int(num_inference_steps * strength), num_inference_steps)
    first = (num_inference_steps - taken) * schedule.evaluations_per_step
    if taken == 0 or first >= schedule.num_inference_steps:
        raise UsageError(
            f"strength: got {strength:g} of {num_inference_steps} steps, which leaves none, want "
            f"at least {1 / num_inference_steps:.2g}. Raise one of them."
        )
    return RunPart(first=first, stop=schedule.num_inference_steps)


def part_between(
    part: RunPart,
    schedule: Schedule,
    *,
    denoising_start: float | None,
    denoising_end: float | None,
) -> RunPart:
    """The steps between two shares of the training schedule: two models share one run.

    Args:
        part: the steps without regard to them.
        schedule: the run's.
        denoising_start: share that another model has done; it takes the place of `strength`.
        denoising_end: share after which another model goes on.

    Raises:
        UsageError: shares outside 0 to 1, in the wrong order, or with no step between them.

    Source: diffusers 0.39 pipeline_stable_diffusion_xl_img2img.py, get_timesteps and __call__ 9.1.
    """
    for name, share in (("denoising_start", denoising_start), ("denoising_end", denoising_end)):
        if share is not None and not 0 < share < 1:
            raise UsageError(f"{name}: got {share:g}, want between 0 and 1.")
    both = denoising_start is not None and denoising_end is not None
    if both and (denoising_start or 0) >= (denoising_end or 0):
        raise UsageError(
            f"denoising_start: got {denoising_start} with denoising_end {denoising_end}, want it "
            "to be less."
        )
    first, stop = part.first, part.stop
    if denoising_start is not None:
        first = _first_below(schedule, denoising_start)
    if denoising_end is not None:
        cutoff = _cutoff(schedule, denoising_end)
        stop = first + int((schedule.timesteps[first:stop] >= cutoff).sum())
    if stop <= first:
        raise UsageError(
            f"denoising_start, denoising_end: got {denoising_start} and {denoising_end}, which "
            f"leave no step of {schedule.num_inference_steps}. Take more steps."
        )
    return RunPart(first=first, stop=stop)


def _first_below(schedule: Schedule, denoising_start: float) -> int:
    taken = int((schedule.timesteps < _cutoff(schedule, denoising_start)).sum())
    if schedule.evaluations_per_step == 2 and taken % 2 == 0:
        taken += 1  # not between the two evaluations of one step
    return schedule.num_inference_steps - taken


def _cutoff(schedule: Schedule, share: float) -> int:
    total = schedule.num_train_timesteps
    return round(total - share * total)
