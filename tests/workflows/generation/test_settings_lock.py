import errno
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import BrokenInputError, OutputError, UsageError
from triptych.workflows.generation.settings_lock import (
    SETTINGS_FILE,
    check_settings_lock,
    lock_settings,
    settings_fingerprint,
)

SETTINGS: Mapping[str, object] = {
    "bundle": "abc",
    "guidance_scale": 7.5,
    "scheduler": {"name": "euler", "spacing": None},
    "size_px": (1024, 1024),
}


def test_the_first_run_fixes_them_and_the_next_agrees(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "dataset"
    fingerprint = lock_settings(output, SETTINGS)
    before = (output / SETTINGS_FILE).read_bytes()
    assert json.loads(before)["settings"]["size_px"] == [1024, 1024]
    assert json.loads(before)["schema_version"] == 1
    assert lock_settings(output, dict(reversed(list(SETTINGS.items())))) == fingerprint
    assert (output / SETTINGS_FILE).read_bytes() == before
    assert [path.name for path in output.iterdir()] == [SETTINGS_FILE]


def test_every_difference_is_named(tmp_path: Path) -> None:
    lock_settings(tmp_path, SETTINGS)
    others = {
        "guidance_scale": 5.0,
        "scheduler": {"name": "ddim", "spacing": None},
        "size_px": (1024, 512),
        "bundle": "abc",
        "new": True,
    }
    with pytest.raises(UsageError) as caught:
        lock_settings(tmp_path, others)
    message = str(caught.value)
    assert message.splitlines()[1:-1] == [
        "  guidance_scale: got 5, want 7.5",
        "  new: got true, want nothing",
        '  scheduler.name: got "ddim", want "euler"',
        "  size_px: got [1024, 512], want [1024, 1024]",
    ]
    assert "--overwrite" in message
    assert caught.value.exit_code == 2


def test_a_setting_that_is_gone_is_a_difference(tmp_path: Path) -> None:
    lock_settings(tmp_path, SETTINGS)
    with pytest.raises(UsageError, match='bundle: got nothing, want "abc"'):
        lock_settings(tmp_path, {name: SETTINGS[name] for name in SETTINGS if name != "bundle"})


def test_overwriting_takes_the_new_ones(tmp_path: Path) -> None:
    first = lock_settings(tmp_path, SETTINGS)
    second = lock_settings(tmp_path, {"guidance_scale": 5.0}, overwrite=True)
    assert first != second
    assert lock_settings(tmp_path, {"guidance_scale": 5.0}) == second
    with pytest.raises(UsageError):
        lock_settings(tmp_path, SETTINGS)


def test_looking_writes_nothing(tmp_path: Path) -> None:
    check_settings_lock(tmp_path / "dataset", SETTINGS)
    assert list(tmp_path.iterdir()) == []
    lock_settings(tmp_path, SETTINGS)
    with pytest.raises(UsageError):
        check_settings_lock(tmp_path, {})


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"{}", b'{"schema_version": 2, "settings": {}}', b"[" * 100_000],
)
def test_a_broken_file_is_refused_and_can_be_overwritten(content: bytes, tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_bytes(content)
    with pytest.raises(BrokenInputError, match=r"generation\.json: got "):
        lock_settings(tmp_path, SETTINGS)
    assert (tmp_path / SETTINGS_FILE).read_bytes() == content
    lock_settings(tmp_path, SETTINGS, overwrite=True)
    lock_settings(tmp_path, SETTINGS)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(settings=st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_fingerprint_outlives_the_file_and_the_order(settings: dict[str, object]) -> None:
    read = json.loads(json.dumps(dict(reversed(list(settings.items())))))
    assert settings_fingerprint(read) == settings_fingerprint(settings)


@given(first=VALUES, second=VALUES)
def test_fingerprints_of_different_values_differ(first: object, second: object) -> None:
    same = settings_fingerprint({"a": first}) == settings_fingerprint({"a": second})
    if json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True):
        assert same
    elif first != second:
        assert not same


def test_numbers_are_compared_by_value_and_booleans_are_none() -> None:
    assert settings_fingerprint({"a": 7}) == settings_fingerprint({"a": 7.0})
    assert settings_fingerprint({"a": -0.0}) == settings_fingerprint({"a": 0})
    assert settings_fingerprint({"a": True}) != settings_fingerprint({"a": 1})
    assert settings_fingerprint({"a": "7"}) != settings_fingerprint({"a": 7})
    assert len(settings_fingerprint({})) == 16
    with pytest.raises(ValueError, match="JSON"):
        settings_fingerprint({"a": float("nan")})


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_begin_at_once_one_fixes_them(
    links: bool,  # noqa: FBT001  # pytest hands parameters over by name
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With and without hard links, which exFAT does not have."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    for round_number in range(20):
        output = tmp_path / str(round_number)
        outcomes = begin_at_once(output, [{"guidance": number % 2} for number in range(6)])
        winner = json.loads((output / SETTINGS_FILE).read_bytes())["settings"]["guidance"]
        assert outcomes == ["ok" if number % 2 == winner else "refused" for number in range(6)]
        assert [path.name for path in output.iterdir()] == [SETTINGS_FILE]


def begin_at_once(output: Path, choices: list[dict[str, object]]) -> list[str]:
    barrier = threading.Barrier(len(choices))
    outcomes = ["crashed"] * len(choices)

    def begin(number: int) -> None:
        barrier.wait()
        try:
            lock_settings(output, choices[number])
            outcomes[number] = "ok"
        except UsageError:
            outcomes[number] = "refused"

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(len(choices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_a_full_disk_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(OutputError, match="Make room"):
        lock_settings(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == []
