"""What this machine and this process have: cores, memory in use, memory left.  Sizes are in bytes."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def usable_cores() -> int:
    """Count the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Return what this process holds in memory now; where only the most it ever held is known (macOS), that."""
    return _kib(_STATUS, "VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Return the most that this process ever held in memory, pages of mapped files included."""
    # Not ru_maxrss on Linux: a process inherits it from the one that started it.
    unit = 1 if sys.platform == "darwin" else 1024
    return _kib(_STATUS, "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory() -> int:
    """Return how much memory this machine, or the container that this process is in, has."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(pages, _container("memory.max") or _UNLIMITED)


def available_memory() -> int:
    """Return how much memory could be taken now without swapping."""
    free = _kib(_MEMINFO, "MemAvailable") or total_memory()
    limit, used = _container("memory.max"), _container("memory.current")
    return min(free, limit - used) if limit and used else free


def _kib(path: Path, key: str) -> int:
    """Read a line such as "VmRSS:   123 kB" and return its bytes; 0 if there is none."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", path.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _container(name: str) -> int:
    """Read a limit of the control group (version 2); 0 if there is none."""
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
