"""Becomes another program that the kernel ends with its parent: `python _bound.py PARENT_PID PROGRAM ARGUMENTS...`.

A parent that is killed cannot end its children.  The request to the kernel survives the exec, and, made here, it needs
no Python code between fork and exec of a parent with threads.  Linux only; run as a file, it imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, command: list[str]) -> None:
    """Bind this process to *parent*, and become *command*."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  # a shell is the last thing wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
