"""Giving memory back to the system when a run is closed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["give_memory_back"]


def give_memory_back() -> bool:
    """Have the C library return what is free; it keeps what a queue that had grown once took, run after run.

    Returns
    -------
    bool
        Whether this system's library can do that.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    if trim is None:
        return False
    trim(0)
    return True
