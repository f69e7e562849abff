"""Giving memory back between the stages of an export."""

import ctypes
import gc
import sys


def release_memory() -> None:
    """Collect reference cycles, and have the C library return what is free to the system.

    Graphs of converters are full of cycles, and glibc keeps what a trace has freed: 10 GiB of the
    full-size U-Net at 1024 x 1024.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
