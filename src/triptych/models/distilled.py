"""Models that were distilled to few steps, as far as their scheduler tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from triptych.models.configs import read_json


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """What a distilled model was made for.

    Attributes:
        name: of the method.
        max_guidance_scale: more than this spoils its pictures.
        max_steps: more than these gain nothing.
    """

    name: str
    max_guidance_scale: float
    max_steps: int


_TURBO: Final = Distillation(name="Turbo", max_guidance_scale=1.0, max_steps=4)
_LCM: Final = Distillation(name="LCM", max_guidance_scale=2.0, max_steps=8)


def find_distillation(folder: Path) -> Distillation | None:
    """What the model in a folder was distilled for; None where its scheduler is an ordinary one.

    Lightning is published with no scheduler of its own, so it is not told from others.

    Raises:
        CheckpointError: the scheduler's config is missing or not readable.

    Source:
        The model cards and scheduler_config.json of stabilityai/sdxl-turbo, and of
        latent-consistency/lcm-lora-sdxl and lcm-sdxl.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name"))
    is_trailing = config.get("timestep_spacing") == "trailing"
    if name == "EulerAncestralDiscreteScheduler" and is_trailing:
        return _TURBO
    return _LCM if name == "LCMScheduler" else None


def distillation_warnings(
    folder: Path, *, guidance_scale: float, num_inference_steps: int
) -> Iterator[str]:
    """One sentence for each setting that a distilled model was not made for."""
    made_for = find_distillation(folder)
    if made_for is None:
        return
    what = f"a {made_for.name} model, by its scheduler"
    if guidance_scale > made_for.max_guidance_scale:
        yield (
            f"{what}: --guidance-scale {guidance_scale:g} is more than the "
            f"{made_for.max_guidance_scale:g} it was made for"
        )
    if num_inference_steps > made_for.max_steps:
        yield (
            f"{what}: {num_inference_steps} steps are more than the {made_for.max_steps} it was "
            "made for"
        )
