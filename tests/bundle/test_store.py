import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.bundle.manifest import FileRecord
from triptych.bundle.store import (
    check_files,
    file_sha256,
    find_damage,
    record_files,
    replace_folder,
)
from triptych.errors import BundleError, OutputError, UsageError


@pytest.fixture(scope="module")
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def tree(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones too, with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Replacing


def test_a_folder_appears_with_what_was_written(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with replace_folder(target) as folder:
        (folder / "a").mkdir()
        (folder / "a" / "file").write_text("new")
        assert not target.exists()
    assert tree(tmp_path) == {"deep/bundle/a/file": "new"}


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "file").write_text("old")
    with pytest.raises(UsageError, match="--overwrite"), replace_folder(tmp_path / "bundle"):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"bundle/file": "old"}


def test_overwriting_replaces_the_folder_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with replace_folder(target, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert tree(target) == {"old": "old"}
    assert tree(tmp_path) == {"bundle/new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_block_leaves_everything_as_it_was(
    exists: bool,  # noqa: FBT001  # pytest hands parameters over by name
    error: type[BaseException],
    tmp_path: Path,
) -> None:
    target = tmp_path / "bundle"
    if exists:
        target.mkdir()
        (target / "file").write_text("old")

    def fill() -> None:
        with replace_folder(target, overwrite=True) as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fill()
    assert target.exists() == exists
    assert tree(tmp_path) == ({"bundle/file": "old"} if exists else {})
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if exists else [])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_refused_and_kept(
    overwrite: bool,  # noqa: FBT001  # pytest hands parameters over by name
    tmp_path: Path,
) -> None:
    target = tmp_path / "bundle"
    target.write_text("mine")
    with pytest.raises(UsageError, match="a file"), replace_folder(target, overwrite=overwrite):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"bundle": "mine"}


def test_a_file_where_the_folder_is_to_lie_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"bundle: got .*want to make a folder there"),
        replace_folder(tmp_path / "file" / "bundle"),
    ):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"file": "mine"}


@pytest.mark.parametrize(
    ("number", "raised"), [(errno.ENOSPC, OutputError), (errno.ENOENT, FileNotFoundError)]
)
def test_a_full_disk_is_no_fault_of_the_code(
    number: int, raised: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "file").write_text("old")

    def fill() -> None:
        with replace_folder(tmp_path / "bundle", overwrite=True):
            raise OSError(number, os.strerror(number))

    with pytest.raises(raised, match=re.escape(os.strerror(number))):
        fill()
    assert tree(tmp_path) == {"bundle/file": "old"}


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_in_the_way_is_refused_and_what_it_points_to_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    target = tmp_path / "bundle"
    target.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(UsageError, match="a link"), replace_folder(target, overwrite=True):
        pytest.fail("the block ran")
    assert target.is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "mine"


# Leftovers of killed processes


@pytest.mark.parametrize("name", ["bundle", "bundle[1]", "bun.dle"])
@pytest.mark.skipif(os.name == "nt", reason="leftovers stay there: see _is_alive")
def test_a_dead_process_half_folder_is_removed(name: str, dead_pid: int, tmp_path: Path) -> None:
    leftover = tmp_path / f".{name}.partial-{dead_pid}"
    leftover.mkdir()
    (leftover / "file").write_text("half")
    with replace_folder(tmp_path / name) as folder:
        (folder / "file").write_text("new")
    assert tree(tmp_path) == {f"{name}/file": "new"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name == "nt", reason="leftovers stay there: see _is_alive")
def test_a_folder_that_a_dead_process_moved_aside_is_put_back(
    dead_pid: int, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    aside = tmp_path / f".bundle.replaced-{dead_pid}"
    aside.mkdir()
    (aside / "file").write_text("old")
    (tmp_path / f".bundle.partial-{dead_pid}").mkdir()
    with pytest.raises(UsageError, match="exists"), replace_folder(target):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"bundle/file": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.skipif(os.name == "nt", reason="leftovers stay there: see _is_alive")
def test_a_folder_moved_aside_is_removed_where_the_new_one_stands(
    dead_pid: int, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "file").write_text("new")
    aside = tmp_path / f".bundle.replaced-{dead_pid}"
    aside.mkdir()
    (aside / "file").write_text("old")
    with pytest.raises(UsageError), replace_folder(target):
        pytest.fail("the block ran")
    assert tree(tmp_path) == {"bundle/file": "new"}
    assert not aside.exists()


def test_what_a_living_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / f".bundle.partial-{os.getppid()}"
    partial.mkdir()
    with replace_folder(tmp_path / "bundle"):
        pass
    assert partial.is_dir()


def test_other_hidden_folders_are_left_alone(dead_pid: int, tmp_path: Path) -> None:
    others = [
        f".bundle2.partial-{dead_pid}",
        f"bundle.partial-{dead_pid}",
        ".bundle.partial-",
        ".bundle.partial-1x",
        f".bundle.other-{dead_pid}",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with replace_folder(tmp_path / "bundle"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", *others}


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "file").write_text("old")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from triptych.bundle.store import replace_folder\n"
        "with replace_folder(Path(sys.argv[1]), overwrite=True) as folder:\n"
        "    (folder / 'file').write_text('half')\n"
        "    os._exit(9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert ended.returncode == 9
    assert tree(target) == {"file": "old"}
    assert len(list(tmp_path.iterdir())) == 2
    with replace_folder(target, overwrite=True) as folder:
        (folder / "file").write_text("new")
    assert tree(tmp_path) == {"bundle/file": "new"}


# Hashes and damage


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=100))
def test_a_files_hash_is_that_of_its_content(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert file_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, tuple[FileRecord, ...]]:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(bytes(range(100)))
    (tmp_path / "config.json").write_bytes(b"{}")
    return tmp_path, record_files(tmp_path)


def test_every_file_is_recorded_sorted(recorded: tuple[Path, tuple[FileRecord, ...]]) -> None:
    _, records = recorded
    assert [(record.path, record.size_bytes) for record in records] == [
        ("config.json", 2),
        ("unet/model.onnx", 100),
    ]


@pytest.mark.parametrize("hashes", [False, True])
def test_a_whole_folder_has_no_damage(
    hashes: bool,  # noqa: FBT001  # pytest hands parameters over by name
    recorded: tuple[Path, tuple[FileRecord, ...]],
) -> None:
    folder, records = recorded
    assert find_damage(folder, records, hashes=hashes) == ()
    check_files(folder, records, hashes=hashes)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "unet/model.onnx: truncated, 99 of 100 bytes"),
        (grow, "unet/model.onnx: 101 bytes, the manifest says 100"),
        (Path.unlink, "unet/model.onnx: missing"),
        (make_folder, "unet/model.onnx: missing"),
    ],
)
@pytest.mark.parametrize("hashes", [False, True])
def test_a_damaged_file_is_named(
    hashes: bool,  # noqa: FBT001  # pytest hands parameters over by name
    damage: Callable[[Path], None],
    message: str,
    recorded: tuple[Path, tuple[FileRecord, ...]],
) -> None:
    folder, records = recorded
    damage(folder / "unet" / "model.onnx")
    assert find_damage(folder, records, hashes=hashes) == (message,)
    with pytest.raises(BundleError, match="want the files as they were exported"):
        check_files(folder, records, hashes=hashes)


def test_a_flipped_bit_is_found_by_its_hash_alone(
    recorded: tuple[Path, tuple[FileRecord, ...]],
) -> None:
    folder, records = recorded
    flip(folder / "unet" / "model.onnx")
    assert find_damage(folder, records, hashes=False) == ()
    (damage,) = find_damage(folder, records)
    assert damage.startswith("unet/model.onnx: content changed")


def test_all_damaged_files_are_named(recorded: tuple[Path, tuple[FileRecord, ...]]) -> None:
    folder, records = recorded
    cut(folder / "unet" / "model.onnx")
    (folder / "config.json").unlink()
    with pytest.raises(BundleError, match=r"config\.json: missing; unet/model\.onnx: truncated"):
        check_files(folder, records)


def test_files_that_nobody_promised_are_no_damage(
    recorded: tuple[Path, tuple[FileRecord, ...]],
) -> None:
    folder, records = recorded
    (folder / "README.md").write_text("mine")
    assert find_damage(folder, records) == ()


def test_overwriting_spares_a_folder_that_is_somebody_else_s(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "letters.txt").write_text("mine")

    with (
        pytest.raises(UsageError, match=r"run\.json"),
        replace_folder(target, overwrite=True, marker="run.json"),
    ):
        raise AssertionError("the block must not run")
    assert (target / "letters.txt").read_text() == "mine"

    (target / "run.json").write_text("{}")
    with replace_folder(target, overwrite=True, marker="run.json") as folder:
        (folder / "run.json").write_text("new")
    assert [path.name for path in target.iterdir()] == ["run.json"]
