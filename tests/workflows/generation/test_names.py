import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.workflows.generation import names
from triptych.workflows.generation.names import (
    id_problem,
    picture_path,
    step_folder_name,
    step_of_folder,
)


def test_pictures_are_where_the_readers_look_for_them() -> None:
    path = picture_path(step=1, query_id="123456", n=0, picture_format="jpg")
    assert path == "proxy_images_sdxl_step1/combined/combined_123456_0.jpg"
    path = picture_path(step=32, query_id="a b", n=12, picture_format="png")
    assert path == "proxy_images_sdxl_step32/combined/combined_a b_12.png"


@given(
    first=st.tuples(st.text("a_1", min_size=1), st.integers(0, 20)),
    second=st.tuples(st.text("a_1", min_size=1), st.integers(0, 20)),
)
def test_no_two_pictures_share_a_path(first: tuple[str, int], second: tuple[str, int]) -> None:
    paths = [
        picture_path(step=1, query_id=name, n=n, picture_format="jpg")
        for name, n in (first, second)
    ]
    assert (paths[0] == paths[1]) == (first == second)


def test_the_longest_id_makes_a_name_that_file_systems_take() -> None:
    lengths = [length for length in range(1, 300) if not id_problem("x" * length)]
    assert lengths == list(range(1, 232))
    path = picture_path(step=1, query_id="x" * 231, n=999_999_999, picture_format="jpg")
    assert len(path.rpartition("/")[2]) == 254


@pytest.mark.parametrize(
    "name",
    [
        "proxy_images_sdxl_step",
        "proxy_images_sdxl_step0",
        "proxy_images_sdxl_step05",
        "proxy_images_sdxl_step5_backup",
        "proxy_images_sdxl_step5\n",
        "my_proxy_images_sdxl_step5",
        "proxy_images_sdxl_stepx",
    ],
)
def test_other_folders_are_no_steps(name: str) -> None:
    assert step_of_folder(name) is None


@given(step=st.integers(1, 999))
def test_a_steps_folder_says_the_step(step: int) -> None:
    assert step_of_folder(step_folder_name(step)) == step


def test_windows_has_ids_of_its_own_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A colon there names a stream inside another file."""
    monkeypatch.setattr(names, "_ON_WINDOWS", True)
    assert "Windows refuses" in id_problem("coco:5")
    monkeypatch.setattr(names, "_ON_WINDOWS", False)
    assert id_problem("coco:5") == ""
