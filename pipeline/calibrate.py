"""An importance matrix for a model: it is converted if need be, and llama-imatrix runs it over a text."""

from __future__ import annotations

from pathlib import Path

from pipeline import data, flow, whole
from pipeline.errors import UsageError
from pipeline.gguf import read_parts
from pipeline.runtime import Calibration, compute_imatrix, require_llama
from pipeline.tuning import Importance, read_importance
from pipeline.types import Log

TEXT = "calibration/text.txt"


def compute(model: str, output: Path, log: Log, text: Path | None = None, how: Calibration | None = None) -> Importance:
    """Compute the importance matrix of *model*, a checkpoint or a GGUF, and write it to *output*.

    Without *text* the one that ships with the tool is taken.  The file appears when it is whole and has been read back.

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
    with whole.folder_beside(output) as folder:
        if not is_there:
            gguf = folder / "model.gguf"
            flow.convert(model, gguf, "auto", log, how.threads)
        made = folder / output.name
        with log.bar(f"computing over {text.name}") as progress:
            compute_imatrix(gguf, text, made, how, progress)
        found = read_importance(made)
        made.replace(output)
    return found
