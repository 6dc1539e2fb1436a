"""Plans become files: written, or copied where they exist already, with progress, and only where there is room."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline import data, quant
from pipeline.checkpoint import TensorReader
from pipeline.encode import Output, encode
from pipeline.errors import ResourceError, UsageError
from pipeline.gguf import copy_file
from pipeline.measure import ErrorMeter
from pipeline.provenance import weights_of
from pipeline.source import OpenSource
from pipeline.types import Blob, Log, Plan


def write(
    planned: Sequence[Plan],
    paths: Sequence[Path],
    log: Log,
    threads: int = 0,
    opened: OpenSource | None = None,
    meter: ErrorMeter | None = None,
    engine: str = quant.AUTO,
) -> list[Blob]:
    """Read every source tensor once and write all planned files; copy those that exist already.

    Weights of *opened* may still be on their way; *meter* measures the errors of what *engine* encodes.
    """
    check_disk(planned, paths)
    written: dict[Path, Blob] = {}
    outputs = [Output(plan, path) for plan, path in zip(planned, paths, strict=True)]
    for out in outputs:
        if out.plan.verbatim:
            with log.bar(f"copying {out.plan.verbatim.name}") as progress:
                written[out.path] = copy_file(out.plan.verbatim, out.path, out.plan.file_bytes, progress)
    rest = [out for out in outputs if out.path not in written]
    if rest:
        blobs = _encode(rest, log, threads, opened, meter, engine)
        written |= {out.path: blob for out, blob in zip(rest, blobs, strict=True)}
    return [written[path] for path in paths]


def _encode(
    outputs: Sequence[Output],
    log: Log,
    threads: int,
    opened: OpenSource | None,
    meter: ErrorMeter | None,
    engine: str,
) -> list[Blob]:
    if opened is not None:
        opened.prefer(weights_of(outputs[0].plan.tensors))
    names = ", ".join(out.plan.recipe for out in outputs)
    with TensorReader(ready=opened.wait if opened else None) as reader, log.bar(f"writing {names}") as progress:
        stop = opened.stop if opened else None
        made = encode(outputs, reader, threads=threads, engine=engine, progress=progress, on_error=stop, meter=meter)
    if note := quant.fallback_note():
        log.note(note)
    return made


def check_encoders(planned: Sequence[Plan]) -> None:
    """Refuse to start, or to download, what cannot be encoded here.

    Raises:
        ToolError: if a type needs a library that is not built.
    """
    tensors = [tensor for plan in planned if not plan.verbatim for tensor in plan.tensors if tensor.view]
    recoded = [(t.view.dtype, t.type) for t in tensors if t.view and t.view.dtype != t.type]
    for name in sorted({name for pair in recoded for name in pair} & quant.types().keys()):
        quant.get(name).require()


def check_disk(planned: Sequence[Plan], paths: Sequence[Path]) -> None:
    """Refuse to start what the disk cannot hold.

    Raises:
        AccessError: if a folder cannot be written.
        ResourceError: if the files together are larger than the free space.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise UsageError("the folder of the output does not exist", where=path.parent, hint="make it first")
        data.require_writable(path.parent, "the folder of the output cannot be written", "choose another one with -o")
    needed = sum(plan.file_bytes for plan in planned)
    free = shutil.disk_usage(paths[0].parent).free
    if free < needed:
        raise ResourceError(
            "not enough disk space",
            where=paths[0].parent,
            expected=f"{needed:,} bytes free",
            found=f"{free:,} bytes free",
            hint="free some space, make fewer quantizations at once, or take another disk: -o, or, to publish, "
            "GGUF_PIPELINE_STORE for the target local and XDG_CACHE_HOME for registries",
        )
