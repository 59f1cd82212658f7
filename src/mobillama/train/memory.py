"""How the C library hands out memory on the CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's <malloc.h>
NEVER = 2**31 - 1  # bytes; the largest an int argument can say


def keep_freed_memory() -> bool:
    """Let freed memory of this process be used again instead of going back to the system; False if not possible.

    A step frees and asks for the same large tensors over and over. glibc maps each anew, and the system fills every
    page with zeros at its first touch: that takes longer than many a kernel that then overwrites it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, NEVER)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
