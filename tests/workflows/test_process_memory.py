"""Memory of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.workflows.process_memory import private_bytes, process_tree

LARGE = 64 << 20
HOLD = f"held = b'x' * {LARGE}; print(flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@only_linux
def test_what_a_child_s_child_holds_is_counted() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        own, *others = process_tree(process.pid)
        seen = private_bytes(process.pid)
        process.communicate(b"\n")
    assert own == process.pid
    assert len(others) == 1
    assert seen is not None
    assert LARGE < seen < 3 * LARGE
    assert private_bytes(process.pid) == 0  # it has ended


@only_linux
def test_a_mapped_file_is_not_counted(tmp_path: Path) -> None:
    import mmap

    file = tmp_path / "large"
    file.write_bytes(os.urandom(1 << 20) * 64)
    before = private_bytes(os.getpid())
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[position] for position in range(0, LARGE, 4096)) > 0
        after = private_bytes(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before < LARGE / 2


def test_other_systems_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert private_bytes(os.getpid()) is None
