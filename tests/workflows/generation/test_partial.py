import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.errors import OutputError
from triptych.workflows.generation import partial as partial_module
from triptych.workflows.generation.partial import (
    find_writers,
    open_partial,
    remove_leftovers,
)

HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from triptych.workflows.generation.partial import open_partial\n"
    "with open_partial(Path(sys.argv[1])) as folder:\n"
    "    (folder / 'half').write_text('half')\n"
    "    print(folder, flush=True)\n"
    "    sys.stdin.read()\n"
)


class Holder:
    """Another process that has a folder open."""

    def __init__(self, output: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.folder = Path(self.process.stdout.readline().strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    held = Holder(tmp_path)
    yield held
    held.kill()


def test_the_folder_is_a_writers_own_and_gone_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "dataset"
    with open_partial(output) as first, open_partial(output) as second:
        assert first != second
        assert {first.parent, second.parent} == {output / ".partial"}
        (first / "file").write_text("half")
        (second / "file").write_text("half")
    assert list(output.iterdir()) == []


def test_it_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_partial(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_living_writers_folder_stays(holder: Holder, tmp_path: Path) -> None:
    with open_partial(tmp_path):
        remove_leftovers(tmp_path)
    assert (holder.folder / "half").exists()
    assert find_writers(tmp_path) == (holder.folder.name,)


@pytest.mark.slow
def test_a_killed_writers_folder_is_removed(holder: Holder, tmp_path: Path) -> None:
    holder.kill()
    assert (holder.folder / "half").exists()
    assert find_writers(tmp_path) == ()
    with open_partial(tmp_path) as folder:
        assert sorted(path.name for path in (tmp_path / ".partial").iterdir()) == [
            folder.name,
            f"{folder.name}.lock",
        ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_machines_folder_stays(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is dead, but a lock of a network file system may not tell."""
    holder.kill()
    own = platform.node()
    for other in (f"{own}-2", own[:-1] or "x", "elsewhere"):
        monkeypatch.setattr(platform, "node", lambda other=other: other)
        remove_leftovers(tmp_path)
        assert (holder.folder / "half").exists()


@pytest.mark.slow
def test_without_locks_nothing_is_removed(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.kill()
    monkeypatch.setattr(partial_module, "_try_lock", lambda _: "unknown")
    with open_partial(tmp_path) as folder:
        assert folder.is_dir()
    assert (holder.folder / "half").exists()


@pytest.mark.skipif(os.name == "nt", reason="has no flock")
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with (tmp_path / "a").open("xb") as lock, (tmp_path / "a").open("rb+") as again:
        assert partial_module._try_lock(lock) == "here"
        assert partial_module._try_lock(again) == "elsewhere"
        monkeypatch.setattr(fcntl, "flock", refuse)
        assert partial_module._try_lock(again) == "unknown"


def test_somebody_elses_files_stay(tmp_path: Path) -> None:
    others = ["notes.txt", "a.lock", f"{platform.node()}.lock", "-.lock"]
    (tmp_path / ".partial").mkdir()
    for name in others:
        (tmp_path / ".partial" / name).write_text("mine")
    with open_partial(tmp_path):
        pass
    assert {path.name for path in (tmp_path / ".partial").iterdir()} == set(others)


def test_a_lock_taken_between_making_and_locking_is_left_to_who_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who removes leftovers is faster: the folder is made under another name."""
    answers = iter(["elsewhere", "here"])
    monkeypatch.setattr(partial_module, "_try_lock", lambda _: next(answers, "elsewhere"))
    with open_partial(tmp_path) as folder:
        assert folder.is_dir()
        assert len(list((tmp_path / ".partial").glob("*.lock"))) == 1


def test_the_folder_above_may_vanish_before_the_lock_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of the other writers removes it when it ends."""
    times: list[Path] = []
    real = Path.mkdir

    def mkdir(path: Path, *, parents: bool = False, exist_ok: bool = False) -> None:
        real(path, parents=parents, exist_ok=exist_ok)
        if path.name == ".partial" and len(times) < 3:
            times.append(path)
            shutil.rmtree(path)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with open_partial(tmp_path) as folder:
        assert folder.is_dir()
    assert len(times) == 3


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".partial").write_text("mine")
    with pytest.raises(OutputError, match="want a folder"), open_partial(tmp_path):
        pytest.fail("the block ran")


@pytest.mark.slow
def test_many_writers_begin_and_end_at_once(tmp_path: Path) -> None:
    """None loses its folder, and nothing is left."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from triptych.workflows.generation.partial import open_partial\n"
        "for number in range(150):\n"
        "    with open_partial(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'file').write_text(str(number))\n"
        "        assert (folder / 'file').read_text() == str(number)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert errors == [b"", b"", b""]
    assert list(tmp_path.iterdir()) == []
