"""Runs llama-imatrix: a GGUF and a text come in, a file with an importance matrix goes out."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ToolError, UsageError
from pipeline.runtime.child import bound_to_us
from pipeline.runtime.llama import require_llama

_TOTAL = re.compile(rb"computing over (\d+) chunks")
_DONE = re.compile(rb"\[(\d+)\][-\d.naif]+,")
_TOO_SHORT = re.compile(rb"you need at least|not enough tokens left")
_LAST_LINES = 12
_SPARE = 4  # tokens that are added to a text: its begin, a space


@dataclass(frozen=True)
class Calibration:
    """What llama-imatrix is told: *context* is the length of a chunk in tokens.

    At most *n_chunks* are taken, all where it is None, from chunk *first* on; *before* are matrices that are added to.
    *threads* 0 is for llama.cpp to choose; *with_output* collects for the output tensor, too.
    """

    context: int = 512
    n_chunks: int | None = None
    first: int = 0
    before: tuple[Path, ...] = ()
    threads: int = 0
    with_output: bool = False

    @property
    def width(self) -> int:
        """How many chunks are read at once."""
        return self._batch // self.context

    @property
    def _batch(self) -> int:
        return max(self.context, 512)

    def arguments(self) -> list[str]:
        """Return the options as llama-imatrix takes them."""
        made = ["-c", str(self.context), "-b", str(self._batch), "--chunk", str(self.first)]
        made += ["--chunks", str(self.n_chunks)] if self.n_chunks is not None else []
        made += ["--in-file", ",".join(str(path.resolve()) for path in self.before)] if self.before else []
        made += ["-t", str(self.threads)] if self.threads else []
        made += ["--process-output"] if self.with_output else []
        return made


def compute_imatrix(
    model: Path, text: Path, output: Path, how: Calibration, progress: Callable[[int, int], None]
) -> None:
    """Compute the importance matrix of the GGUF *model* over *text* and write it to *output*, in GGUF form.

    *progress* is called with the chunks done and the chunks in all, first when none is done; what it raises ends the
    program.  The file names its text by its name alone.

    Raises:
        ToolError: if llama.cpp is not built, or fails.
        UsageError: if the text is too short.
    """
    if any("," in str(path) for path in how.before):
        raise UsageError(
            "llama-imatrix cannot take a file with a comma in its name", found=", ".join(map(str, how.before))
        )
    if text.stat().st_size + _SPARE < 2 * how.context:  # no token is shorter than a byte
        raise _too_short(text, how)
    program = require_llama().program("llama-imatrix")
    command = [
        str(program), "-m", str(model.resolve()), "-f", f"./{text.name}" if text.name.startswith("-") else text.name,
        "-o", str(output.resolve()), "--output-format", "gguf", "--offline", *how.arguments(),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    with subprocess.Popen(
        bound_to_us(command),
        cwd=text.resolve().parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    ) as child:
        try:
            said = _follow(child, progress)
        except BaseException:
            child.kill()
            raise
    if child.returncode == 0 and output.is_file():
        return
    if _TOO_SHORT.search(said):
        raise _too_short(text, how)
    end = "\n".join(_lines(said)[-_LAST_LINES:])
    # It may end before it has said why, so the commonest reason stands in the hint.
    hint = f"is the text long enough? Chunks of {how.context} tokens need at least {2 * how.context}"
    raise ToolError(f"llama-imatrix ended with {child.returncode}", where=model, found=end, hint=hint)


def _too_short(text: Path, how: Calibration) -> UsageError:
    return UsageError(
        "the text is too short for an importance matrix",
        where=text,
        expected=f"{(2 + how.first) * how.context} tokens",
        hint="take a longer text, or shorter chunks with --ctx",
    )


def _follow(child: subprocess.Popen[bytes], progress: Callable[[int, int], None]) -> bytes:
    """Read what the program says until it ends, and tell of chunks as it counts them."""
    assert child.stdout is not None  # noqa: S101  it was asked for
    said, seen, total = b"", 0, 0
    while piece := os.read(child.stdout.fileno(), 1 << 16):
        said = (said + piece)[-(1 << 20) :]
        if not total and (found := _TOTAL.search(said)):
            total = int(found[1])
            progress(0, total)
        done = [int(number) for number in _DONE.findall(said[-(1 << 12) :])]
        if total and done and done[-1] > seen:
            seen = done[-1]
            progress(min(seen, total), total)
    if child.wait() == 0 and seen < total:  # its last words may be lost
        progress(total, total)
    return said


def _lines(said: bytes) -> list[str]:
    return [line for line in said.decode(errors="replace").splitlines() if line.strip()]
