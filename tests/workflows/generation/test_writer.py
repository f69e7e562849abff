import errno
import hashlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from _typeshed import TraceFunction

from triptych.errors import OutputError, TensorMismatchError, UsageError
from triptych.types import Array
from triptych.workflows.generation import writer as writer_module
from triptych.workflows.generation.ledger import read_ledgers
from triptych.workflows.generation.shards import WHOLE, Shard
from triptych.workflows.generation.units import Unit
from triptych.workflows.generation.writer import Picture, WriterSettings, open_writer

PROCESS = Path(__file__).with_name("writer_process.py")
PACKAGE = str(Path(writer_module.__file__).parent)
STEPS = (1, 4, 8)


def tree(output: Path) -> dict[str, str]:
    """Every file of the step folders with its hash."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.glob("proxy_images_sdxl_step*/**/*")
        if path.is_file()
    }


def pictures(unit: Unit, pixels: Array, *steps: int) -> list[Picture]:
    return [Picture(unit=unit, step=step, pixels=pixels, seconds=0.5) for step in steps]


def check_whole(output: Path) -> None:
    """Every file that is there is a picture, and recorded as it is."""
    found = tree(output)
    ledger = read_ledgers(output)
    for path, sha256 in found.items():
        assert path.split("/")[1] == "combined"
        assert sha256 in {record.sha256 for record in ledger.by_path[path]}, path
        with Image.open(output / path) as picture:
            picture.load()


# Saving


def test_pictures_are_in_their_places_with_their_records(
    save: Callable[..., Path], units: tuple[Unit, ...]
) -> None:
    output = save(1, 32)
    found = tree(output)
    assert set(found) == {
        f"proxy_images_sdxl_step{step}/combined/combined_{unit.id}_{unit.n}.jpg"
        for step in (1, 32)
        for unit in units
    }
    assert sorted(path.name for path in output.iterdir()) == [
        "ledger",
        "proxy_images_sdxl_step1",
        "proxy_images_sdxl_step32",
    ]
    check_whole(output)
    (record,) = read_ledgers(output).by_path["proxy_images_sdxl_step32/combined/combined_2_1.jpg"]
    assert (record.id, record.n, record.step, record.prompt) == ("2", 1, 32, "a dog")
    assert record.seed == units[5].seed
    assert (record.runtime, record.seconds) == ("onnxruntime", 0.5)
    assert record.size_bytes == (output / record.path).stat().st_size


def test_the_ledgers_name_says_the_shard(
    tmp_path: Path, units: tuple[Unit, ...], pixels: Array, writer_settings: WriterSettings
) -> None:
    with open_writer(tmp_path, writer_settings, shard=Shard(index=1, count=3)) as writer:
        writer.save(pictures(units[0], pixels, 1))
    (ledger,) = (tmp_path / "ledger").iterdir()
    assert ledger.name.startswith("1-of-3-")
    assert ledger.name.endswith(".jsonl")
    assert f"-{os.getpid()}-" in ledger.name


def test_a_picture_is_recorded_before_it_is_there(
    tmp_path: Path,
    units: tuple[Unit, ...],
    pixels: Array,
    writer_settings: WriterSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = []
    real = Path.replace

    def look_first(path: Path, target: Path) -> Path:
        name = target.relative_to(tmp_path).as_posix()
        (record,) = read_ledgers(tmp_path).by_path[name]
        assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert not target.exists()
        moved.append(name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", look_first)
    with open_writer(tmp_path, writer_settings, shard=WHOLE) as writer:
        writer.save(pictures(units[0], pixels, *STEPS))
    assert len(moved) == 3


def test_pictures_can_be_read_by_others(tmp_path: Path, save: Callable[..., Path]) -> None:
    """Temporary files made in the usual way are for their owner alone."""
    ordinary = tmp_path / "ordinary"
    ordinary.write_bytes(b"")
    path = save(1) / "proxy_images_sdxl_step1" / "combined" / "combined_0_0.jpg"
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_a_picture_that_is_there_is_replaced(
    save: Callable[..., Path], units: tuple[Unit, ...], writer_settings: WriterSettings
) -> None:
    output = save(1)
    before = tree(output)
    black = np.zeros((24, 16, 3), dtype=np.uint8)
    with open_writer(output, writer_settings, shard=WHOLE) as writer:
        (record,) = writer.save(pictures(units[0], black, 1))
    after = tree(output)
    assert {path for path in after if after[path] != before[path]} == {record.path}
    check_whole(output)


def test_threads_can_share_a_writer(
    tmp_path: Path, units: tuple[Unit, ...], pixels: Array, writer_settings: WriterSettings
) -> None:
    with open_writer(tmp_path, writer_settings, shard=WHOLE) as writer:
        threads = [
            threading.Thread(target=writer.save, args=(pictures(unit, pixels, *STEPS),))
            for unit in units
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(tree(tmp_path)) == len(units) * 3
    check_whole(tmp_path)


def test_a_quality_is_refused_before_anything_is_made(
    tmp_path: Path, writer_settings: WriterSettings
) -> None:
    settings = replace(writer_settings, quality=0)
    with (
        pytest.raises(UsageError, match="quality"),
        open_writer(tmp_path, settings, shard=WHOLE),
    ):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == []


def test_of_a_unit_with_a_broken_picture_nothing_is_kept(
    tmp_path: Path, units: tuple[Unit, ...], pixels: Array, writer_settings: WriterSettings
) -> None:
    broken = Picture(unit=units[0], step=4, pixels=pixels[:, :, :2], seconds=0.0)
    with open_writer(tmp_path, writer_settings, shard=WHOLE) as writer:
        with pytest.raises(TensorMismatchError):
            writer.save([*pictures(units[0], pixels, 1), broken])
        assert list((tmp_path / ".partial").glob("*/*")) == []
    assert list(tmp_path.iterdir()) == []


# Disks that refuse


def refuse_with(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    return refuse


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room on the disk of"),
        (errno.EDQUOT, "or raise the quota"),
        (errno.EACCES, "may be written to"),
        (errno.EROFS, "may be written to"),
        (errno.EIO, "See to the disk of"),
    ],
)
@pytest.mark.parametrize("what", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.mkdir"])
def test_a_refusal_is_told_and_what_is_there_is_kept(
    what: str,
    number: int,
    advice: str,
    save: Callable[..., Path],
    units: tuple[Unit, ...],
    pixels: Array,
    writer_settings: WriterSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception that is swallowed leaves holes that nobody hears of."""
    output = save(1)
    before = tree(output)
    settings = replace(writer_settings, durable=True)
    with open_writer(output, settings, shard=WHOLE) as writer:
        with monkeypatch.context() as patched:
            patched.setattr(what, refuse_with(number))
            with pytest.raises(OutputError) as caught:
                writer.save(pictures(units[0], pixels, 4, 8))
        assert tree(output) == before
        assert list((output / ".partial").glob("*/*")) == []
        writer.save(pictures(units[0], pixels, 4, 8))
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(f"somewhere: got {os.strerror(number)}, want to write")
    assert advice in str(caught.value)
    assert "give the same command again, and it makes those that are missing" in str(caught.value)
    assert len(tree(output)) == len(before) + 2
    assert read_ledgers(output).num_skipped == 0
    check_whole(output)


def test_a_folder_that_may_not_be_written_to_is_told_at_once(
    tmp_path: Path, writer_settings: WriterSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", refuse_with(errno.EACCES))
    with (
        pytest.raises(OutputError, match="may be written to"),
        open_writer(tmp_path, writer_settings, shard=WHOLE),
    ):
        pytest.fail("the block ran")


def test_a_folder_in_the_place_of_a_picture_is_told(
    tmp_path: Path, units: tuple[Unit, ...], pixels: Array, writer_settings: WriterSettings
) -> None:
    place = tmp_path / "proxy_images_sdxl_step1" / "combined" / "combined_0_0.jpg"
    place.mkdir(parents=True)
    with (
        open_writer(tmp_path, writer_settings, shard=WHOLE) as writer,
        pytest.raises(OutputError, match=r"combined_0_0\.jpg: got "),
    ):
        writer.save(pictures(units[0], pixels, 1))


# Kills


def killed_at_line(number: int, make: Callable[[], None]) -> bool:
    """Call `make` in a copy of this process that is killed before so many lines of code.

    Lines of this package count, and those of pathlib that change files. False where there were
    not so many.
    """
    left = number
    changes = {
        method.__code__
        for method in (Path.mkdir, Path.open, Path.replace, Path.unlink, Path.write_bytes)
    }

    def count_line(frame: FrameType, event: str, _: object) -> "TraceFunction | None":
        nonlocal left
        code = frame.f_code
        if code not in changes and not code.co_filename.startswith(PACKAGE):
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return count_line

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the copy does not have
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        sys.settrace(count_line)
        make()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies itself to be killed")
def test_killed_before_any_line_every_file_is_whole_and_recorded(
    tmp_path: Path, units: tuple[Unit, ...], pixels: Array
) -> None:
    settings = WriterSettings(fingerprint="f", runtime="none", picture_format="png")

    def make() -> None:
        with open_writer(output, settings, shard=WHOLE) as writer:
            writer.save(pictures(units[0], pixels, 1, 4))

    output = tmp_path / "0"
    make()  # imports what it needs
    counts = []
    for number in itertools.count(1):
        output = tmp_path / str(number)
        if not killed_at_line(number, make):
            break
        check_whole(output)
        counts.append(len(tree(output)))
        if number % 20 == 0:
            make()
            assert not (output / ".partial").exists()
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2}


# Other processes


def start(
    output: Path, num_queries: int, *, shard: str = "0/1", seconds: float = 0
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(PROCESS), str(output), str(num_queries), shard, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> int:
    """How many pictures it made."""
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return int(printed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The tree of 40 ids that one process has made without a stop."""
    output = tmp_path_factory.mktemp("undisturbed") / "dataset"
    assert finish(start(output, 40)) == 80
    found = tree(output)
    assert len(found) == 80 * 3
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shards", [("0/2", "1/2"), ("2/3", "0/3", "1/3"), ("0/1", "0/1")])
def test_processes_at_once_make_the_tree_of_one(
    shards: tuple[str, ...], undisturbed: Mapping[str, str], tmp_path: Path
) -> None:
    """Even where two make the same part."""
    processes = [start(tmp_path, 40, shard=shard, seconds=0.005) for shard in shards]
    counts = [finish(process) for process in processes]
    assert sum(counts) == 80 or len(set(shards)) == 1
    assert tree(tmp_path) == undisturbed
    check_whole(tmp_path)
    assert read_ledgers(tmp_path).num_skipped == 0
    assert len(list((tmp_path / "ledger").iterdir())) == len(shards)
    assert not (tmp_path / ".partial").exists()
    assert finish(start(tmp_path, 40)) == 0


class Watcher:
    """Looks at every new file of a dataset as soon as it is there, as a reader would."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.seen: set[tuple[str, int]] = set()
        self.recorded: set[tuple[str, str]] = set()

    def look(self) -> None:
        for folder in self.output.glob("proxy_images_sdxl_step*/combined"):
            for entry in os.scandir(folder):
                key = (entry.path, entry.stat().st_mtime_ns)
                if key not in self.seen:
                    self.check(Path(entry.path))
                    self.seen.add(key)

    def check(self, path: Path) -> None:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
        name = path.relative_to(self.output).as_posix()
        key = (name, hashlib.sha256(content).hexdigest())
        if key not in self.recorded:
            ledger = read_ledgers(self.output)
            self.recorded = {
                (record.path, record.sha256)
                for records in ledger.by_path.values()
                for record in records
            }
        assert key in self.recorded, f"{name} is there without its record"

    def watch(self, process: "subprocess.Popen[str]", *, until: float) -> None:
        """Until a moment, or the end of the process."""
        while process.poll() is None and time.monotonic() < until:
            self.look()


def is_writing(process: "subprocess.Popen[str]", output: Path) -> bool:
    try:
        names = os.listdir(output / ".partial")  # noqa: PTH208  it comes and goes
    except FileNotFoundError:
        return False
    return any(f"-{process.pid}-" in name for name in names)


@pytest.mark.slow
def test_killed_at_twenty_moments_the_tree_is_that_of_an_undisturbed_run(
    undisturbed: Mapping[str, str], tmp_path: Path
) -> None:
    """No reader ever sees a file that is not whole and recorded, and nothing is made twice."""
    watcher = Watcher(tmp_path)
    moments = np.random.default_rng().uniform(0, 0.12, size=20)
    sizes = [0]
    for moment in moments:
        process = start(tmp_path, 40, seconds=0.005)
        deadline = time.monotonic() + 60
        while process.poll() is None and not is_writing(process, tmp_path):
            assert time.monotonic() < deadline
            watcher.look()
        watcher.watch(process, until=time.monotonic() + moment)
        process.kill()
        process.communicate()
        watcher.look()
        check_whole(tmp_path)
        sizes.append(len(tree(tmp_path)))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5, f"the kills came too early or too late: {sizes}"
    left = len(undisturbed) - sizes[-1]
    assert left / 3 <= finish(start(tmp_path, 40)) <= left
    assert tree(tmp_path) == undisturbed
    check_whole(tmp_path)
    assert not (tmp_path / ".partial").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="has no ulimit")
def test_a_limit_of_the_files_size_ends_in_an_error(tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    process = subprocess.run(
        [
            "/bin/sh",
            "-c",
            'ulimit -f 8; exec "$@"',
            "sh",
            sys.executable,
            PROCESS,
            output,
            "2",
            "0/1",
            "0",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (4, "")
    assert "got File too large" in process.stderr
    assert tree(output) == {}
    assert finish(start(output, 2)) == 4


SMALL_DISK = """
set -e
mount -t tmpfs -o size=1m none "$DISK"
head -c 400000 /dev/zero > "$DISK/ballast"
set +e
"$PYTHON" "$PROCESS" "$DISK/dataset" 40 0/1 0
echo "first $?"
cp -r "$DISK/dataset" "$COPIES/first"
rm "$DISK/ballast"
"$PYTHON" "$PROCESS" "$DISK/dataset" 40 0/1 0
echo "second $?"
cp -r "$DISK/dataset" "$COPIES/second"
mount -o remount,size=8m "$DISK"
"$PYTHON" "$PROCESS" "$DISK/dataset" 40 0/1 0
echo "third $?"
cp -r "$DISK/dataset" "$COPIES/third"
"""


@pytest.mark.slow
def test_a_full_disk_ends_in_an_error_and_a_tree_that_resumes(
    undisturbed: Mapping[str, str], tmp_path: Path
) -> None:
    """In a namespace of its own a process may mount a small disk without rights."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        pytest.skip("cannot make a small disk: no unshare, or no user namespaces")
    disk, copies = tmp_path / "disk", tmp_path / "copies"
    disk.mkdir()
    copies.mkdir()
    places = {"DISK": disk, "COPIES": copies, "PYTHON": sys.executable, "PROCESS": PROCESS}
    ended = subprocess.run(
        [unshare, "-rm", "/bin/sh", "-c", SMALL_DISK],
        env={**os.environ, **{name: str(place) for name, place in places.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ended.stdout.splitlines()
    assert lines[:2] == ["first 4", "second 4"]
    assert lines[3] == "third 0"
    assert ended.stderr.count("got No space left on device, want to write") == 2
    trees = [tree(copies / name) for name in ("first", "second", "third")]
    assert 0 < len(trees[0]) < len(trees[1]) < len(trees[2])
    assert trees[1].items() >= trees[0].items()
    for name in ("first", "second", "third"):
        check_whole(copies / name)
        assert not (copies / name / ".partial").exists()
    assert trees[2] == undisturbed
    assert int(lines[2]) < 80
