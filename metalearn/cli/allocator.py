"""Keep big buffers in the process instead of handing them back to the kernel after every use.

By default glibc maps each large buffer afresh and unmaps it when it is freed, so an inner loop on the CPU spends a good
part of its time in page faults. Higher thresholds let it reuse what it has.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_buffers"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_buffers() -> bool:
    """Raise glibc's mmap and trim thresholds for this process; the environment variable METALEARN_MALLOC=0 forbids it.

    Returns:
        whether it was done: only under Linux with glibc.
    """
    if os.environ.get("METALEARN_MALLOC") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library has no such call
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))
