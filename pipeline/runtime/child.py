"""Children that end with this process, even if it is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_BOUND = Path(__file__).with_name("_bound.py")


def bound_to_us(command: list[str]) -> list[str]:
    """Let *command* end with this process even if that is killed, where the system can (Linux)."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", str(_BOUND), str(os.getpid()), *command]
