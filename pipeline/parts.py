"""Write a model in several files: all of them appear under their names, the first one last, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import crash, whole
from pipeline.errors import UsageError
from pipeline.gguf import part_paths, refused
from pipeline.plan import split_plan
from pipeline.types import Blob, Plan

Write = Callable[[Sequence[Plan], Sequence[Path]], list[Blob]]


@dataclass(frozen=True)
class Written:
    """What was written: the plan of the whole model, and each file with its content."""

    plan: Plan
    files: tuple[tuple[Path, Blob], ...]


@dataclass(frozen=True)
class SplitModel:
    """A model as the files it is written to: *parts* are their plans, one or several, in the order of *paths*."""

    plan: Plan
    path: Path
    parts: tuple[Plan, ...]

    @classmethod
    def of(cls, plan: Plan, path: Path, part_bytes: int | None) -> SplitModel:
        """Cut *plan* into parts of at most *part_bytes* of tensors; None means one file."""
        return cls(plan, path, split_plan(plan, part_bytes) if part_bytes else (plan,))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return part_paths(self.path, len(self.parts)) if len(self.parts) > 1 else (self.path,)

    def refuse_to_replace(self, sources: Sequence[Path]) -> None:
        """Refuse to write over what is read.

        Raises:
            UsageError: if one of the files is one of *sources*.
        """
        for path in self.paths:
            if path.exists() and any(path.samefile(source) for source in sources):
                raise UsageError("the output would replace the input", where=path, hint="give another name with -o")

    def write(self, write: Write) -> Written:
        """Write the files by *write*.

        Older parts of these names stay until all new ones are whole.  Whoever opens a model begins with its first part,
        which is away while the others are exchanged.

        Raises:
            PipelineError: from *write*; nothing is changed then.
            AccessError: if the folder refuses.
        """
        if len(self.parts) == 1:
            return Written(self.plan, ((self.path, write([self.plan], [self.path])[0]),))
        total = sum(part.file_bytes for part in self.parts)
        with refused(self.path, total), whole.folder_beside(self.path) as folder:
            made = [folder / path.name for path in self.paths]
            blobs = [write([part], [temporary])[0] for part, temporary in zip(self.parts, made, strict=True)]
            crash.point("parts written")
            self.paths[0].unlink(missing_ok=True)
            for temporary, path in reversed(list(zip(made, self.paths, strict=True))):
                temporary.replace(path)
                crash.point("part named")
        return Written(self.plan, tuple(zip(self.paths, blobs, strict=True)))
