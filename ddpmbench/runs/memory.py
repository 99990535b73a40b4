"""How much memory is available, and what the C library does with what is given back."""

import ctypes
import functools
import os
import platform
import re
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from malloc.h
_MOST = 2**31 - 1


def available_memory() -> int:
    """Bytes that can be had without swapping: all there are where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        text = ""
    if found := re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def keep_memory() -> bool:
    """Keep freed memory for the next call of the network, in this process from now on.

    By default glibc gives large blocks back to the system at once, and every activation of the
    network begins with page faults, which on a CPU are a good part of a small network's time.

    Returns:
        Whether the C library is one that can be told so.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions take no more than 32 MiB.
    is_mapped_less = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)
    return bool(mallopt(_TRIM_THRESHOLD, _MOST)) and bool(is_mapped_less)
