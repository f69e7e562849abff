"""Memory of a running process and of those that it has started. Read from Linux's /proc."""

import sys
from pathlib import Path


def private_bytes(pid: int) -> int | None:
    """Private (anonymous) memory of a process and its descendants: what the machine must have.

    What the system keeps of mapped files is not in it. None where the system is not Linux.
    """
    if sys.platform != "linux":
        return None
    return sum(_anonymous_bytes(process) for process in process_tree(pid))


def process_tree(pid: int) -> list[int]:
    """A process and its descendants; those that have ended meanwhile are left out."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += process_tree(int(child))
    except OSError:  # it has ended
        pass
    return found


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
