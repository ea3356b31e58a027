"""Memory that a process frees and takes again with every piece of a body is kept, instead of given back to the system and cleared anew.

With glibc's defaults a piece of 1 MiB is mapped, its pages are made one by one, and all of them are given back: a third of what receiving it costs.
What is kept is bounded; larger blocks than a few pieces go back at once, as before.
"""

from __future__ import annotations

import contextlib
import ctypes

MAPPED_FROM_BYTES = 4 << 20
KEPT_BYTES = 32 << 20
"""Of free memory at the end of a heap."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> bool:
    """Tell the C library so; False if it is not one that understands it."""
    with contextlib.suppress(OSError, AttributeError):
        tell = ctypes.CDLL(None).mallopt
        return bool(tell(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)) and bool(tell(_M_TRIM_THRESHOLD, KEPT_BYTES))
    return False
