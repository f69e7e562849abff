"""Scenes as pictures."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.scenes.drawing import (
    UNIT_AREAS,
    Variation,
    draw,
    draw_mask,
    random_variation,
)
from triptych.scenes.scene import COLORS, Scene, ShapeName, iter_scenes

SCENES = tuple(iter_scenes())


@pytest.mark.parametrize("shape", get_args(ShapeName))
@pytest.mark.parametrize("extent_px", [32.0, 56.0])
def test_a_shape_has_its_area_and_its_middle(shape: ShapeName, extent_px: float) -> None:
    mask = draw_mask(shape, center_px=(60.0, 70.0), extent_px=extent_px)
    assert mask.sum() == pytest.approx(UNIT_AREAS[shape] * extent_px**2, rel=0.03)
    middle = [(mask.sum(axis=axis) * (np.arange(128) + 0.5)).sum() / mask.sum() for axis in (0, 1)]
    np.testing.assert_allclose(middle, (60, 70), atol=0.3)


def test_edges_are_smooth() -> None:
    mask = draw_mask("circle", center_px=(64.0, 64.0), extent_px=40.0)
    between = (mask > 0) & (mask < 1)
    assert 80 < between.sum() < 300
    assert len(np.unique(mask)) > 10


@given(scene=st.sampled_from(SCENES))
def test_a_picture_has_the_two_colours_and_what_lies_between(scene: Scene) -> None:
    picture = draw(scene)
    assert tuple(picture[0, 0]) == COLORS[scene.background]
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    common = {tuple(color) for color in colors[np.argsort(counts)[-2:]].tolist()}
    assert common == {COLORS[scene.color], COLORS[scene.background]}


@given(scene=st.sampled_from(SCENES), seed=st.integers(0, 2**32))
def test_variation_is_slight_and_at_most_a_tip_leaves_the_picture(scene: Scene, seed: int) -> None:
    variation = random_variation(np.random.default_rng(seed))
    assert variation == random_variation(np.random.default_rng(seed))
    picture = draw(scene, variation)
    ground = np.clip(np.add(COLORS[scene.background], variation.background_shift), 0, 255)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == ground).all(axis=1).mean() > 0.98


def test_no_variation_is_the_scene_itself() -> None:
    np.testing.assert_array_equal(draw(SCENES[0]), draw(SCENES[0], Variation()))
