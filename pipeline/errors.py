"""The one error tree.  Every stage raises only from here; only cli.py prints and exits.

PipelineError                 exit 1   anything of ours
├── UsageError                exit 2   the call itself is wrong
├── InputError                exit 3   a file or a model is bad or not supported
│   ├── FormatError                    a file is not what its format says
│   ├── UnsupportedError               well formed, but nothing here can handle it
│   └── ProofError                     what was made differs from what was meant
├── AccessError               exit 4   a source or a target did not answer, or refused
├── ResourceError             exit 5   not enough disk or memory
└── ToolError                 exit 1   a program that is needed is missing or failed
"""

from __future__ import annotations

import errno


class PipelineError(Exception):
    """Base of all errors of this package.

    The message is one string, built from the parts; the parts stay as attributes.

    Args:
        what: one sentence that says what is wrong.
        where: the file, tensor, key or address it is about.
        expected: what a good input has there.
        found: what is there.
        hint: the next step, as something a person can do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.hint = hint
        super().__init__(self._message())

    def _message(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head]
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.found is not None:
            lines.append(f"  found:    {self.found}")
        if self.hint:
            lines.append(f"  hint:     {self.hint}")
        return "\n".join(lines)


class UsageError(PipelineError):
    """The command line or a setting is wrong."""

    exit_code = 2


class InputError(PipelineError):
    """A file or a model is bad or not supported."""

    exit_code = 3


class FormatError(InputError):
    """A file is not what its format says."""


class UnsupportedError(InputError):
    """The input is well formed, but nothing here can handle it."""


class ProofError(InputError):
    """What was made differs from what was meant."""


class AccessError(PipelineError):
    """A source or a target could not be reached, or refused."""

    exit_code = 4


class ResourceError(PipelineError):
    """Not enough disk or memory."""

    exit_code = 5


class ToolError(PipelineError):
    """A program that is needed is missing or failed."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def from_os_error(error: OSError, what: str | None = None, where: object = None) -> PipelineError:
    """Say in our words that the disk refused: ResourceError if it is full, AccessError for any other reason.

    Args:
        error: what the system said.
        what: one sentence that says what came of it; without one, the system's own words.
        where: the file, if the system does not name it.
    """
    place = error.filename or where
    if error.errno in _FULL:
        return ResourceError(
            what or "no space left on the disk",
            where=place,
            found=error.strerror,
            hint="free some space, then run the same command again",
        )
    if error.errno == errno.ENOMEM:
        return not_enough_memory()
    said = error.strerror or str(error)
    return AccessError(what or said, where=place, found=said if what else None, hint="check the path and its rights")


def not_enough_memory() -> ResourceError:
    """Make the error for an allocation that the system refused."""
    return ResourceError("not enough memory", hint="--threads 1 takes the least; or free some memory")
