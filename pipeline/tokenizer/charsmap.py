"""SentencePiece's precompiled character map, checked: llama.cpp walks it without looking where it steps.

It is a double array of 32-bit entries (the length in bytes comes first), then the replacements, each ended by NUL.
An entry holds a label in bits 0 to 7, "a replacement ends here" in bit 8, and the way to its children in bits 9 to 31;
bit 31 alone marks an entry that is the place of a replacement.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import numpy as np

from pipeline.errors import FormatError
from pipeline.strict_json import short

MAX_BYTES = 1 << 20  # the largest known has about 320,000
_LABELS = np.arange(1, 256, dtype=np.uint32)  # no text holds a NUL that would match
_BLOCK = 1024


def decode(text: str, path: Path) -> bytes:
    """Read the map as tokenizer.json writes it, in base64; an empty one is none.

    Raises:
        FormatError: if it is none.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("precompiled_charsmap is not base64", where=path, found=short(str(error))) from error
    check(data, path)
    return data


def check(data: bytes, path: Path) -> None:
    """Refuse a map that would lead llama.cpp astray.

    Raises:
        FormatError: if a step from any entry that can be reached leaves the array, or a replacement has no end.
    """
    if not data:
        return
    n_bytes = int.from_bytes(data[:4], "little")
    if len(data) > MAX_BYTES or n_bytes % 4 or not 0 < n_bytes <= len(data) - 5 or data[-1]:
        raise FormatError(
            "precompiled_charsmap is no character map",
            where=path,
            found=f"{len(data)} bytes, of them {n_bytes} of the array",
        )
    array = np.frombuffer(data, "<u4", n_bytes // 4, 4)
    places = _replacements(array, path)
    if places.size and places.max() >= len(data) - 4 - n_bytes:
        raise FormatError("precompiled_charsmap has a replacement outside", where=path, found=int(places.max()))


def _replacements(array: np.ndarray, path: Path) -> np.ndarray:
    """Walk all entries that can be reached and give the places of their replacements, int64 (n,)."""
    seen = np.zeros(array.size, bool)
    places: list[np.ndarray] = []
    states = _children(array, np.zeros(1, np.uint32), path)
    while states.size:
        entries = np.unique(np.concatenate([_reached(array, block) for block in _blocks(states)]))
        entries = entries[~seen[entries]]
        seen[entries] = True
        states = _children(array, entries, path)
        ends = states[(array[entries] >> np.uint32(8)) & np.uint32(1) == 1]
        places.append((array[ends] & np.uint32(0x7FFFFFFF)).astype(np.int64))
    return np.concatenate(places) if places else np.zeros(0, np.int64)


def _children(array: np.ndarray, entries: np.ndarray, path: Path) -> np.ndarray:
    """Give the state behind each entry: its children lie at state ^ label, all inside the array."""
    packed = array[entries]
    wide = (packed & np.uint32(1 << 9)) >> np.uint32(6)
    states = entries.astype(np.uint32) ^ ((packed >> np.uint32(10)) << wide)
    if states.size and int(states.max()) | 255 >= array.size:
        raise FormatError("precompiled_charsmap leads outside itself", where=path, found=f"entry {int(states.max())}")
    return np.asarray(states, np.uint32)


def _reached(array: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Give the entries that some label leads to from *states*."""
    entries = states[:, None] ^ _LABELS[None, :]
    labels = array[entries] & np.uint32(0x800000FF)
    return np.asarray(entries[labels == _LABELS[None, :]])


def _blocks(states: np.ndarray) -> list[np.ndarray]:
    return [states[at : at + _BLOCK] for at in range(0, states.size, _BLOCK)]
