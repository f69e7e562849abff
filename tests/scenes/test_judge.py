"""The judge, on pictures whose scene is known."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from triptych.scenes.drawing import draw, draw_mask, random_variation
from triptych.scenes.judge import compare_scenes, read_scene
from triptych.scenes.scene import Scene, iter_scenes
from triptych.types import Picture

SCENES = tuple(iter_scenes())
SCENE = Scene(shape="triangle", color="red", size="large", place="top", background="white")


@given(scene=st.sampled_from(SCENES), seed=st.integers(0, 2**32))
def test_what_was_drawn_is_read(scene: Scene, seed: int) -> None:
    picture = draw(scene, random_variation(np.random.default_rng(seed)))
    reading = read_scene(picture)
    assert reading.scene == scene
    assert reading.overlap > 0.85
    assert compare_scenes(scene, reading).is_whole


@given(scene=st.sampled_from(SCENES), seed=st.integers(0, 2**32))
def test_noise_and_blur_do_not_mislead(scene: Scene, seed: int) -> None:
    """What an autoencoder does to a picture, and more."""
    generator = np.random.default_rng(seed)
    blurred = Image.fromarray(draw(scene)).filter(ImageFilter.GaussianBlur(1.5))
    noisy = np.asarray(blurred) + generator.normal(0, 8, (128, 128, 3))
    assert read_scene(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).scene == scene


@pytest.mark.parametrize("size", [96, 256])
def test_pictures_of_other_sizes_are_read(size: int) -> None:
    picture = np.asarray(Image.fromarray(draw(SCENE)).resize((size, size)))
    assert read_scene(picture).scene == SCENE


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("shape", replace(SCENE, shape="ring")),
        ("color", replace(SCENE, color="blue")),
        ("size", replace(SCENE, size="small")),
        ("place", replace(SCENE, place="left")),
        ("background", replace(SCENE, background="green")),
    ],
)
def test_one_wrong_part_is_found_and_no_other(part: str, wrong: Scene) -> None:
    agreement = compare_scenes(SCENE, read_scene(draw(wrong)))
    found = {field.name: getattr(agreement, field.name) for field in fields(agreement)}
    assert found == {name: name != part for name in found}
    assert not agreement.is_whole


def _two_shapes() -> Picture:
    picture = draw(SCENE).copy()
    picture[draw_mask("square", center_px=(64.0, 100.0), extent_px=40.0) > 0.5] = (40, 160, 80)
    return picture


def _bar() -> Picture:
    picture = np.full((128, 128, 3), 248, np.uint8)
    picture[60:68, 20:108] = (214, 40, 40)
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        np.full((128, 128, 3), 200, np.uint8),
        np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8),
        _two_shapes(),
        _bar(),
    ],
    ids=["one colour", "noise", "two shapes", "a bar"],
)
def test_what_is_no_scene_of_ours_is_not_taken_for_one(picture: Picture) -> None:
    reading = read_scene(picture)
    assert reading.scene is None
    agreement = compare_scenes(SCENE, reading)
    assert not any(
        (agreement.shape, agreement.color, agreement.size, agreement.place, agreement.background)
    )
