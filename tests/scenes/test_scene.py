"""The scenes, their captions, and which of them training never sees."""

from collections import Counter

from triptych.scenes.scene import Scene, caption, held_out_scenes, is_held_out, iter_scenes


def test_every_scene_has_a_caption_of_its_own() -> None:
    scenes = list(iter_scenes())
    assert len(scenes) == 4 * 8 * 2 * 5 * 7
    assert len({caption(scene) for scene in scenes}) == len(scenes)


def test_captions_read_as_people_write() -> None:
    scene = Scene(shape="circle", color="red", size="small", place="left", background="orange")
    assert caption(scene) == "a small red circle at the left on an orange background"
    scene = Scene(shape="ring", color="blue", size="large", place="center", background="white")
    assert caption(scene) == "a large blue ring in the center on a white background"


def test_the_held_out_scenes_are_the_same_everywhere() -> None:
    """The weights that come along were trained without these: another choice makes them seen."""
    held_out = held_out_scenes()
    assert len(held_out) == 230
    assert [caption(scene) for scene in held_out_scenes(2)] == [
        "a large purple triangle at the right on a black background",
        "a large yellow square at the left on an orange background",
    ]
    assert set(held_out) == {scene for scene in iter_scenes() if is_held_out(scene)}


def test_the_first_held_out_scenes_are_of_every_kind() -> None:
    scenes = held_out_scenes(200)
    for part, kinds in (("shape", 4), ("color", 8), ("size", 2), ("place", 5), ("background", 8)):
        counts = Counter(getattr(scene, part) for scene in scenes)
        assert len(counts) == kinds
        assert min(counts.values()) > 0.5 * len(scenes) / kinds
