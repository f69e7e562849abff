import errno
import io
import json
import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from triptych.errors import BrokenInputError
from triptych.workflows.generation import ledger as ledger_module
from triptych.workflows.generation.ledger import Ledger, LedgerWriter, Record, read_ledgers

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PER_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def record(number: int, *, minutes: float = 0, sha256: str = "") -> Record:
    return Record(
        path=f"step/{number}.jpg",
        id="7é\n",
        n=number,
        step=1,
        seed=2**63 - 1,
        prompt='a "cat"\n\\ \u2028 😀',
        fingerprint="f",
        sha256=sha256 or f"hash {number}",
        size_bytes=10,
        runtime="onnxruntime",
        seconds=0.5,
        time=NOON + timedelta(minutes=minutes),
    )


def write(output: Path, name: str, *records: Record) -> Path:
    path = output / "ledger" / f"{name}.jsonl"
    writer = LedgerWriter(path)
    writer.append(records)
    writer.close()
    return path


def latest(ledger: Ledger) -> dict[str, Record]:
    return {path: records[0] for path, records in ledger.by_path.items()}


# Writing


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a", record(0), record(1))
    ledger = read_ledgers(tmp_path)
    assert latest(ledger) == {"step/0.jpg": record(0), "step/1.jpg": record(1)}
    assert ledger.num_skipped == 0
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [0, 1]
    assert set(json.loads(lines[0])) >= {"path", "id", "n", "step", "seed", "prompt", "sha256"}


def test_a_writer_that_writes_nothing_leaves_no_file(tmp_path: Path) -> None:
    LedgerWriter(tmp_path / "ledger" / "a.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_never_share_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a", record(0))
    with pytest.raises(FileExistsError):
        LedgerWriter(path).append([record(1)])
    assert len(path.read_bytes().splitlines()) == 1


def test_records_are_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "ledger" / "a.jsonl", durable=False)
    for number in range(3):
        writer.append([record(number)])
        assert len(read_ledgers(tmp_path).by_path) == number + 1
    writer.close()


def test_threads_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LedgerWriter(tmp_path / "ledger" / "a.jsonl", durable=False)

    def write_in_two(stream: io.FileIO, content: bytes) -> None:
        stream.write(content[:20])
        time.sleep(0.001)
        stream.write(content[20:])

    def append(first: int) -> None:
        for number in range(first, first + 50):
            writer.append([record(number)])

    monkeypatch.setattr(ledger_module, "_write_all", write_in_two)
    threads = [threading.Thread(target=append, args=(first,)) for first in (0, 50, 100, 150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    ledger = read_ledgers(tmp_path)
    assert (len(ledger.by_path), ledger.num_skipped) == (200, 0)


class NearlyFull(io.FileIO):
    """A file on a disk with room for so many bytes; it takes a part of what does not fit."""

    room = 0
    cuts = True

    @override
    def write(self, content: memoryview) -> int:  # type: ignore[override]  # all that is written
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(content[: self.room])
        self.room -= taken
        return taken

    @override
    def truncate(self, size: int | None = None) -> int:
        if not self.cuts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().truncate(size)


@pytest.mark.parametrize("cuts", [True, False])
def test_what_a_full_disk_has_taken_of_a_record_spoils_no_other(
    cuts: bool,  # noqa: FBT001  # pytest hands parameters over by name
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "ledger" / "a.jsonl"
    path.parent.mkdir()
    opened = NearlyFull(path, "x")
    opened.cuts = cuts
    size = len(msgspec.json.encode(record(0))) + 1
    monkeypatch.setattr(NearlyFull, "room", 3 * size - 30)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_, **__: opened)
        writer = LedgerWriter(path, durable=False)
        writer.append([record(0)])
    with pytest.raises(OSError, match="space"):
        writer.append([record(1), record(2)])
    opened.room = 10 * size
    writer.append([record(3)])
    writer.close()
    ledger = read_ledgers(tmp_path)
    whole = {"step/0.jpg", "step/3.jpg"}
    assert set(ledger.by_path) == (whole if cuts else whole | {"step/1.jpg"})
    assert ledger.num_skipped == (0 if cuts else 1)


# Reading


def test_no_ledgers_are_an_empty_one(tmp_path: Path) -> None:
    assert read_ledgers(tmp_path) == Ledger(by_path={}, num_skipped=0)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ledger of four records."""
    path = write(tmp_path_factory.mktemp("ledger"), "a", *map(record, range(4)))
    return path.read_bytes()


def read(output: Path, content: bytes) -> Ledger:
    path = output / "ledger" / "a.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return read_ledgers(output)


@pytest.mark.slow
def test_cut_off_at_any_byte_it_has_the_whole_records(tmp_path: Path, content: bytes) -> None:
    for length in range(len(content)):
        ledger = read(tmp_path, content[:length])
        tail = content[:length].rpartition(b"\n")[2]
        lacks_only_its_end = bool(tail) and content[length : length + 1] == b"\n"
        assert len(ledger.by_path) == content[:length].count(b"\n") + lacks_only_its_end
        assert ledger.num_skipped == (tail != b"" and not lacks_only_its_end)


@PER_FILE
@given(cuts=st.lists(st.integers(0, 2000), min_size=1, max_size=6), data=st.data())
def test_garbage_between_lines_is_counted(
    cuts: list[int], data: st.DataObject, content: bytes, tmp_path: Path
) -> None:
    """However lines are cut and garbled, the others are read, and nothing is made up."""
    whole = read(tmp_path, content).by_path
    lines = content.splitlines(keepends=True)
    garbled = [
        lines[cut % 4][: cut % len(lines[0])]
        + data.draw(st.binary(max_size=9)).replace(b"\n", b"")
        + b"\n"
        for cut in cuts
    ]
    mixed = data.draw(st.permutations([*lines, *garbled]))
    ledger = read(tmp_path, b"".join(mixed))
    assert set(ledger.by_path) == set(whole)
    assert ledger.num_skipped + sum(map(len, ledger.by_path.values())) == 4 + sum(
        line != b"\n" for line in garbled
    )


@pytest.mark.parametrize(
    "line",
    [
        b"\x00" * 4096,
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"path": "' + b"9" * 100_000,
        msgspec.json.encode(record(0)).replace(b'"n":0', b'"n":"0"'),
        msgspec.json.encode(record(0)).replace(b"Z", b""),
        msgspec.json.encode(record(0)).replace(b"cat", b"\xff"),
    ],
)
def test_lines_that_are_no_records_are_counted(line: bytes, content: bytes, tmp_path: Path) -> None:
    assert line not in content
    ledger = read(tmp_path, line + b"\n" + content)
    assert (len(ledger.by_path), ledger.num_skipped) == (4, 1)


def test_words_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    line = msgspec.json.encode(record(0)).replace(b'{"path"', b'{"new": [1], "path"')
    assert latest(read(tmp_path, line)) == {"step/0.jpg": record(0)}


def test_the_latest_record_of_a_path_comes_first(tmp_path: Path) -> None:
    early, late = record(0, sha256="early"), record(0, minutes=1, sha256="late")
    write(tmp_path, "a", late)
    write(tmp_path, "b", early)
    assert read_ledgers(tmp_path).by_path == {"step/0.jpg": (late, early)}


def test_of_the_same_moment_the_later_line_comes_first(tmp_path: Path) -> None:
    records = [record(0, sha256=word) for word in ("first", "second", "third")]
    write(tmp_path, "a", *records[:2])
    write(tmp_path, "b", records[2])
    assert read_ledgers(tmp_path).by_path == {"step/0.jpg": tuple(reversed(records))}


def test_times_of_several_zones_are_compared(tmp_path: Path) -> None:
    text = msgspec.json.encode(record(0)).decode()
    assert "2026-01-01T12:00:00Z" in text
    later = text.replace("12:00:00Z", "13:30:00+01:00").replace("hash 0", "later")
    assert latest(read(tmp_path, f"{later}\n{text}\n".encode()))["step/0.jpg"].sha256 == "later"


def test_a_ledger_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger" / "a.jsonl").mkdir(parents=True)
    with pytest.raises(BrokenInputError, match=r"a\.jsonl: got "):
        read_ledgers(tmp_path)


def test_a_line_says_a_whole_record() -> None:
    fields = msgspec.to_builtins(replace(record(0), runtime="openvino"))
    assert ledger_module._record(json.dumps(fields).encode()) == replace(
        record(0), runtime="openvino"
    )
