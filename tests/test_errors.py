"""Errors in one form, and the system's own errors in ours."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.errors import AccessError, PipelineError, ResourceError, from_os_error


def test_the_message_has_all_parts() -> None:
    """What, where, expected, found and the next step stand in one message."""
    error = PipelineError("is wrong", where="a.json", expected=1, found=2, hint="mend it")
    assert str(error) == "a.json: is wrong\n  expected: 1\n  found:    2\n  hint:     mend it"


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.ENOSPC, ResourceError, "free some space"),
        (errno.EDQUOT, ResourceError, "free some space"),
        (errno.EFBIG, ResourceError, "free some space"),
        (errno.EROFS, AccessError, "rights"),
        (errno.EACCES, AccessError, "rights"),
        (errno.EIO, AccessError, "rights"),
    ],
)
def test_what_the_system_says(number: int, kind: type[PipelineError], hint: str) -> None:
    """A full disk is a lack of resources, any other refusal one of access; the file is named."""
    error = from_os_error(OSError(number, os.strerror(number), "/x/y"))
    assert type(error) is kind
    assert error.where == "/x/y"
    assert hint in (error.hint or "")
    told = from_os_error(OSError(number, os.strerror(number)), "the report is lost", "/z")
    assert str(told).startswith("/z: the report is lost")
    assert told.found == os.strerror(number)


def test_no_memory() -> None:
    """A system call that fails for lack of memory is said as such."""
    assert "not enough memory" in str(from_os_error(OSError(errno.ENOMEM, "x")))
