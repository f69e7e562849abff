import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.errors import BrokenInputError
from triptych.workflows.generation.tree import (
    find_feature_caches,
    find_step_folders,
    find_strangers,
)


def touch(output: Path, *names: str) -> None:
    for name in names:
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_step_folders_are_found_in_order(save: Callable[..., Path]) -> None:
    output = save(16, 4, 1)
    touch(output, "proxy_images_sdxl_step8", "proxy_images_sdxl_step2_old/file", "other/file")
    assert list(find_step_folders(output).items()) == [
        (step, output / f"proxy_images_sdxl_step{step}") for step in (1, 4, 16)
    ]


def test_there_are_none_where_there_is_no_folder(tmp_path: Path) -> None:
    assert find_step_folders(tmp_path / "no") == {}
    assert find_feature_caches(tmp_path / "no", steps=[1]) == ()
    assert find_strangers(tmp_path / "no", steps=[1], expected=()) == ()


def test_feature_caches_are_found_beside_the_pictures_and_above(tmp_path: Path) -> None:
    caches = ["aug_features_clip.npz", "proxy_images_sdxl_step1/aug_features_blip.npz"]
    others = [
        "aug_features_clip.npy",
        "features.npz",
        "deep/aug_features_clip.npz",
        "proxy_images_sdxl_step4/aug_features_clip.npz",
    ]
    touch(tmp_path, *caches, *others)
    assert find_feature_caches(tmp_path, steps=[1]) == tuple(tmp_path / name for name in caches)


def test_files_that_nobody_expects_are_found(tmp_path: Path) -> None:
    """Readers take every file in the folder for a picture."""
    folder = "proxy_images_sdxl_step1/combined"
    names = ["combined_1_0.jpg", "combined_1_1.jpg", ".DS_Store", "combined_1_0.png"]
    touch(tmp_path, *(f"{folder}/{name}" for name in names))
    (tmp_path / folder / "deep").mkdir()
    strangers = find_strangers(
        tmp_path, steps=[1, 4], expected={f"{folder}/combined_1_0.jpg", f"{folder}/more.jpg"}
    )
    assert strangers == tuple(
        f"{folder}/{name}" for name in (".DS_Store", "combined_1_0.png", "combined_1_1.jpg", "deep")
    )


def test_accents_may_come_back_written_otherwise(tmp_path: Path) -> None:
    name = "proxy_images_sdxl_step1/combined/combined_é_0.jpg"
    touch(tmp_path, unicodedata.normalize("NFD", name))
    expected = {unicodedata.normalize("NFC", name)}
    assert find_strangers(tmp_path, steps=[1], expected=expected) == ()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "proxy_images_sdxl_step1/combined")
    with pytest.raises(BrokenInputError, match="combined: got "):
        find_strangers(tmp_path, steps=[1], expected=())
