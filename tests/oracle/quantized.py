"""What llama-quantize makes of a file, as a digest; asked once, for the same programs and the same input.

The answers are kept in the cache folder.  Their names hold a hash of all that shapes them: the program, the libraries
beside it, every byte of the source, and the recipe.
"""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from pipeline import data, whole
from pipeline.runtime.llama import LIBRARY_SUFFIX, LlamaInstall


@cache
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """Return the hash of a file in hexadecimal digits; one that has not changed is read once."""
    about = path.stat()
    return _sha256(path.resolve(), about.st_size, about.st_mtime_ns)


def quantized(llama: LlamaInstall, source: Path, recipe: str, target: Path) -> str:
    """Return the sha256 of what `llama-quantize source target recipe` writes; *target* is a name that may be used."""
    program = llama.program("llama-quantize")
    libraries = sorted(llama.lib_dir.glob(f"lib*{LIBRARY_SUFFIX}"))
    parts = [sha256(path) for path in (program, *libraries, source)]
    key = hashlib.sha256("\n".join((*parts, recipe)).encode()).hexdigest()
    answer = data.cache_home() / "oracle" / f"quantized-{key}"
    if not answer.exists():
        subprocess.run([program, source, target, recipe], check=True, capture_output=True, timeout=300)
        whole.write_text(answer, sha256(target))
        target.unlink()
    return answer.read_text(encoding="utf-8")
