from pathlib import Path

import pytest

from triptych.errors import CheckpointError
from triptych.models.configs import read_json, setting


def test_an_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"name": "é"}', encoding="utf-8")
    assert read_json(path) == {"name": "é"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "readable JSON"),
        (b'{"a": 1', "readable JSON"),
        (b"\xff\xfe", "readable JSON"),
        (b"[1]", "got list, want a JSON object"),
        (b"null", "got NoneType, want a JSON object"),
    ],
)
def test_what_is_no_object_is_refused_with_its_path(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.json: got no such file"):
        read_json(tmp_path / "absent.json")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="readable JSON"):
        read_json(tmp_path)


def test_an_integer_is_a_float_where_a_float_is_wanted() -> None:
    value = setting({"scaling_factor": 1}, "scaling_factor", float, where="vae")
    assert isinstance(value, float)
    assert value == 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, int), ("4", int), (4.0, int), (True, int), ([4], int), (0, int), (-4, int),
        (True, float), (4, list),
    ],
)  # fmt: skip
def test_a_setting_of_another_type_is_refused(value: object, kind: type) -> None:
    wanted = "a positive int" if kind is int else kind.__name__
    with pytest.raises(CheckpointError, match=rf"vae 'channels': got .*want {wanted}\."):
        setting({"channels": value}, "channels", kind, where="vae")


def test_a_missing_setting_is_refused() -> None:
    with pytest.raises(CheckpointError, match="got None, want a positive int"):
        setting({}, "channels", int, where="vae")
