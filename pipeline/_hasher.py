"""Prints the SHA-256 of a file: `python -I -S _hasher.py PATH PARENT`, a process that nobody's lock holds up."""

import hashlib
import os
import signal
import sys

_CHUNK = 1 << 18  # stays in a core's cache between reading and hashing
_LOOK_UP = 256  # chunks between two looks whether anybody still wants to know


def main() -> None:
    """Hash the file, unless the parent, given by its number, ends first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what an interrupt means, the parent decides
    parent, sha256, buffer = int(sys.argv[2]), hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with open(sys.argv[1], "rb", buffering=0) as file:  # noqa: PTH123  pathlib takes longer to load than all else
        n_chunks = 0
        while n := file.readinto(buffer):
            sha256.update(buffer[:n])
            n_chunks += 1
            if n_chunks % _LOOK_UP == 0 and os.getppid() != parent:
                return
    sys.stdout.write(sha256.hexdigest())


if __name__ == "__main__":
    main()
