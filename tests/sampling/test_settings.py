"""What a run is asked for, and what is refused before anything is computed."""

import math
from dataclasses import replace

import pytest

from triptych.bundle.bundle import Bundle
from triptych.errors import UsageError
from triptych.models.feeds import smooth_picture
from triptych.sampling.image_start import ImageStart
from triptych.sampling.prompt_encoding import Prompts
from triptych.sampling.settings import (
    Settings,
    check_settings,
    guidance_scales,
    picture_size,
)


def settings(**changes: object) -> Settings:
    return replace(Settings(prompts=Prompts(prompt=("a cat",))), **changes)  # type: ignore[arg-type]


def test_guidance_is_the_same_at_every_step() -> None:
    assert guidance_scales(settings(guidance_scale=7.5), num_steps=3) == (7.5, 7.5, 7.5)


@pytest.mark.parametrize(("scale", "outside"), [(7.5, 1.0), (0.0, 0.0), (-2.0, -2.0)])
def test_outside_its_interval_guidance_is_none(scale: float, outside: float) -> None:
    wishes = settings(guidance_scale=scale, guidance_interval=(0.25, 0.75))
    assert guidance_scales(wishes, num_steps=4) == (outside, scale, scale, outside)


def test_an_interval_of_a_schedule() -> None:
    wishes = settings(guidance_schedule=(8.0, 6.0, 4.0, 2.0), guidance_interval=(0.0, 0.5))
    assert guidance_scales(wishes, num_steps=4) == (8.0, 6.0, 1.0, 1.0)


def test_an_interval_without_a_step() -> None:
    with pytest.raises(UsageError, match="holds none of 4 steps"):
        guidance_scales(settings(guidance_interval=(0.3, 0.4)), num_steps=4)


@pytest.mark.parametrize("scales", [(5.0,), (5.0,) * 5])
def test_a_schedule_of_another_length(scales: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=f"got {len(scales)} scales, want 4"):
        guidance_scales(settings(guidance_schedule=scales), num_steps=4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"guidance_scale": math.nan}, "want a finite number"),
        ({"guidance_schedule": (5.0, math.inf)}, "want a finite number"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: got 1.5, want 0 to 1"),
        ({"guidance_rescale": math.nan}, "want 0 to 1"),
        ({"guidance_interval": (0.5, 0.5)}, "the smaller first"),
        ({"guidance_interval": (-0.1, 0.5)}, "want two shares"),
        ({"guidance_interval": (0.5, 1.1)}, "want two shares"),
        ({"aspect_ratio": 0.0}, "want width over height"),
        ({"aspect_ratio": math.nan}, "want width over height"),
        ({"num_images_per_prompt": 0}, "want at least 1"),
    ],
)
def test_what_no_bundle_can_draw(
    changes: dict[str, object], told: str, checkpoint_bundle: Bundle
) -> None:
    with pytest.raises(UsageError, match=told):
        check_settings(checkpoint_bundle, settings(**changes))


def test_an_aspect_ratio_takes_a_size_that_was_trained(checkpoint_bundle: Bundle) -> None:
    assert picture_size(checkpoint_bundle, settings(aspect_ratio=16 / 9)) == (96, 168)


@pytest.mark.parametrize(
    "changes",
    [{"height_px": 64}, {"width_px": 64}, {"start": ImageStart(image=smooth_picture(64, 64))}],
)
def test_an_aspect_ratio_is_a_size(changes: dict[str, object], checkpoint_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="beside a size or a picture"):
        picture_size(checkpoint_bundle, settings(aspect_ratio=1.0, **changes))
