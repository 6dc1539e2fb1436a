"""An importance matrix for a model: it is converted if need be, and llama-imatrix runs it over a text."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline import crash, data, flow, whole
from pipeline.calibrate import _unfinished
from pipeline.calibrate._pieces import Cut, Watch, WorthCuttingError
from pipeline.calibrate._unfinished import Unfinished
from pipeline.errors import InputError, UsageError
from pipeline.gguf import GgufFile, read_parts
from pipeline.provenance import SourceHashes
from pipeline.runtime import Calibration, compute_imatrix, require_llama
from pipeline.store import hash_file
from pipeline.tuning import Importance, read_importance
from pipeline.types import Log

TEXT = "calibration/text.txt"


def compute(
    model: str,
    output: Path,
    log: Log,
    text: Path | None = None,
    how: Calibration | None = None,
    *,
    every: int | None = None,
    resume: bool = True,
) -> Importance:
    """Compute the importance matrix of *model*, a checkpoint or a GGUF, and write it to *output*.

    Without *text* the one that ships with the tool is taken.  The file appears when it is whole and has been read back.
    A long run saves what it has after *every* so many chunks, or after some minutes; with *resume* the same call, of
    the same content, goes on from there, and ends with the bytes of a run that nothing stopped.

    Raises:
        PipelineError: if the model or the text cannot be used, or llama.cpp is not built.
    """
    text = text or data.path(TEXT)
    if not output.parent.is_dir():
        raise UsageError("the folder of the output does not exist", where=output.parent, hint="make it first")
    require_llama()
    how, gguf = how or Calibration(), Path(model)
    is_there = gguf.suffix == ".gguf"
    if is_there:  # llama-imatrix may end before it has said what is wrong with a file
        read_parts(gguf)
    for path in how.before:
        read_importance(path)
    kept = _unfinished.path_for(output)
    if not resume:
        kept.unlink(missing_ok=True)
    with whole.folder_beside(output) as folder:
        if not is_there:
            gguf = folder / "model.gguf"
            flow.convert(model, gguf, "auto", log, how.threads)
        made = folder / "matrix.gguf"
        parts = read_parts(gguf)
        with SourceHashes(gguf.parent, [part.path for part in parts]) as hashes, _saying_what_is_kept(kept, log):
            work = _Work(parts, _copied(text, folder), how, hashes, kept, made)
            _run(work, every, log)
        found = read_importance(made)
        crash.point("matrix read back")
        made.replace(output)
        crash.point("matrix named")
    kept.unlink(missing_ok=True)
    return replace(found, path=output)


def _copied(text: Path, folder: Path) -> Path:
    """Take the text as it is now, under its own name: each piece reads it again."""
    (folder / "text").mkdir()
    return Path(shutil.copyfile(text, folder / "text" / text.name))


@contextmanager
def _saying_what_is_kept(kept: Path, log: Log) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if kept.exists():
            log.note(f"what is computed by now is kept in {kept}; the same command goes on from there")
        raise


@dataclass(frozen=True)
class _Work:
    """What is computed: the files of the *model*, whose *hashes* are being taken, over *text*, into *made*.

    The matrix on the way lies at *kept*.
    """

    model: Sequence[GgufFile]
    text: Path
    how: Calibration
    hashes: SourceHashes
    kept: Path
    made: Path

    def key(self) -> str:
        """Say of what content and in which way the matrix is computed; the number of threads does not matter."""
        sums = [file.sha256 for file in self.hashes.result()]
        sums += [hash_file(path).digest for path in (self.text, *self.how.before)]
        how = asdict(replace(self.how, before=(), threads=0))
        facts = {"sums": sums, "text": self.text.name, "llama.cpp": require_llama().version, **how}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def require_unchanged(self) -> None:
        """Refuse to go on with a model that changed meanwhile.

        Raises:
            FormatError: if it did.
        """
        for part in self.model:
            part.read_tensor_bytes(part.tensors[0], 0, bytearray())

    def run(self, start: int, end: int | None, progress: Callable[[int, int], None]) -> None:
        """Compute the chunks from *start*, which those before it are kept of, to *end*; None is for all."""
        how = self.how
        if end is not None:
            how = replace(how, first=how.first + start, n_chunks=end - start)
        if start:
            how = replace(how, before=(self.kept,))
        compute_imatrix(self.model[0].path, self.text, self.made, how, progress)


def _run(work: _Work, every: int | None, log: Log) -> None:
    """Compute the matrix, from what an earlier run kept on, in pieces if it takes long."""
    last = _found(work, log)
    done, cut = (last.done, last.cut) if last else (0, None)
    with log.bar(f"computing over {work.text.name}") as show:
        if cut is None:
            try:
                work.run(0, None, Watch(show, work.how.width, every))
            except WorthCuttingError as long:
                cut = long.cut
            else:
                return
        elif every:
            cut = Cut.whole_batches(cut.total, every, work.how.width)
        while (end := cut.end(done)) < cut.total:
            work.run(done, end, _shifted(show, done, cut.total))
            work.require_unchanged()
            _unfinished.keep(work.made, work.kept, work.key(), end, cut)
            done = end
        work.run(done, cut.total, _shifted(show, done, cut.total))
        work.require_unchanged()


def _shifted(show: Callable[[int, int], None], start: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _total: show(start + done, total)


def _found(work: _Work, log: Log) -> Unfinished | None:
    """Return what an earlier run of the same kept; say so, or why it is not used."""
    try:
        last = _unfinished.find(work.kept)
    except InputError as error:
        log.note(f"starts anew: {error.what} ({work.kept})")
        return None
    if last is None:
        return None
    log.stage("looking whether an earlier run can be continued")
    if last.key != work.key():
        log.note(f"starts anew: {work.kept} is of another model or text, or other options")
        return None
    log.note(f"goes on after chunk {last.done} of {last.cut.total}; --no-resume starts anew")
    return last
