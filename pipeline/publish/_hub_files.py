"""The files of a release in a repository of the Hub, which makes Ollama's layers of them.

The Hub answers `ollama pull hf.co/org/name:QUANT` itself: it finds the GGUF whose name ends with the quantization, and
takes the files `template`, `system` and `params` beside it for layers.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.publish._release import Release, ReleaseEntry
from pipeline.store import gojson

CARD = "README.md"
DEFAULT_QUANT = "Q4_K_M"  # what the Hub gives to those who name none
_SUFFIX = re.compile(r"[-_.]gguf$", re.IGNORECASE)


def gguf_name(repo: str, tag: str) -> str:
    """Return the name of the GGUF of *tag*: the repository's without "-GGUF", then the quantization."""
    return f"{_SUFFIX.sub('', repo.partition('/')[2])}-{tag}.gguf"


def gguf_files(repo: str, release: Release) -> dict[str, ReleaseEntry]:
    """Return the entries by the names of their files."""
    return {gguf_name(repo, entry.tags[0]): entry for entry in release.entries}


def small_files(release: Release) -> dict[str, bytes]:
    """Return the texts around the GGUF files, by file name; one set serves them all, as the Hub has it."""
    entry = release.entries[0]
    files: dict[str, bytes] = {}
    if entry.template:
        files["template"] = entry.template.encode()
    if entry.system:
        files["system"] = entry.system.encode()
    if entry.params:
        files["params"] = gojson.encode(entry.params, sort_keys=True) + b"\n"
    for number, text in enumerate(text for text in entry.licenses if text):
        files["LICENSE" if number == 0 else f"LICENSE-{number + 1}"] = text.encode()
    return files


def left_out(release: Release) -> str | None:
    """Say what of a Modelfile the Hub has no place for; None if that is nothing."""
    entry = release.entries[0]
    said = {"MESSAGE": entry.messages, "RENDERER": entry.renderer, "PARSER": entry.parser, "REQUIRES": entry.requires}
    names = [name for name, value in said.items() if value]
    return f"the Hub has no place for {', '.join(names)}: left out" if names else None


def git_oid(content: bytes) -> str:
    """Return the id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class CountedFile(io.BufferedReader):
    """A file that tells how far it has been read, from when *told* is set on."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.told: Callable[[int], None] | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        data = super().read(size)
        if self.told is not None:
            self.told(self.tell())
        return data


def sizes(tree: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Return the sizes of the GGUF files in a repository's *tree* (digest or git id, and size, by path)."""
    return {path: size for path, (_, size) in tree.items() if path.endswith(".gguf") and "/" not in path}
