"""SentencePiece's character map: real ones pass, and whatever would lead llama.cpp astray does not."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.tokenizer import charsmap

FIXTURE = Path(__file__).parent.parent / "fixtures" / "tokenizers" / "xlm_roberta" / "tokenizer.json"
PATH = Path("tokenizer.json")
TEXT = json.loads(FIXTURE.read_text("utf-8"))["normalizer"]["precompiled_charsmap"]
MAP = base64.b64decode(TEXT)
N_BYTES = int.from_bytes(MAP[:4], "little")


def test_a_real_map_passes() -> None:
    """The map of a real model is read as it stands."""
    assert charsmap.decode(TEXT, PATH) == MAP
    charsmap.check(b"", PATH)


def _entries(*entries: int) -> bytes:
    return (4 * len(entries)).to_bytes(4, "little") + b"".join(entry.to_bytes(4, "little") for entry in entries)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        MAP[:100],
        MAP[:-1] + b"x",
        (1 << 31).to_bytes(4, "little") + MAP[4:],
        (N_BYTES + 1).to_bytes(4, "little") + MAP[4:],
        _entries(0) + b"a\0",  # shorter than one block of labels
        _entries(0x7FFFFC00, *[0] * 255) + b"a\0",  # the root leads outside
        # label "a" ends a replacement that lies behind the strings
        _entries(1 << 10, *[0] * 95, 0x161, *[0] * 158, 0xFFFF) + b"a\0",
        b"\0" * ((1 << 20) + 8),
    ],
)
def test_bad_maps_are_format_errors(data: bytes) -> None:
    """Wrong sizes, ways out of the array, replacements that do not exist."""
    with pytest.raises(FormatError, match="precompiled_charsmap"):
        charsmap.check(data, PATH)


@pytest.mark.parametrize("text", ["=", "a", "\u00e9", "A A A A "])
def test_bad_base64_is_a_format_error(text: str) -> None:
    """tokenizer.json has the map in base64."""
    with pytest.raises(FormatError, match="base64"):
        charsmap.decode(text, PATH)


def _walk(data: bytes, text: bytes) -> list[bytes]:
    """Replace as llama.cpp does, by the longest match; any step outside is an IndexError."""
    n = int.from_bytes(data[:4], "little") // 4
    array = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "little") for i in range(n)]
    found, at = [], 0
    while at < len(text):
        node, longest, place = array[0] >> 10 << ((array[0] & 512) >> 6), 0, 0
        node &= 0xFFFFFFFF
        for i, value in enumerate(text[at:]):
            node ^= value
            if not value or array[node] & 0x800000FF != value:
                break
            ends = array[node] >> 8 & 1
            node ^= (array[node] >> 10 << ((array[node] & 512) >> 6)) & 0xFFFFFFFF
            if ends:
                longest, place = i + 1, array[node] & 0x7FFFFFFF
        if longest:
            start = 4 + 4 * n + place
            found.append(data[start : data.index(b"\0", start)])
        at += longest or 1
    return found


def test_the_walk_is_the_real_one() -> None:
    """The test's own walk replaces what the map is for: full-width letters, ligatures."""
    assert _walk(MAP, "\ufb01 \u00a0".encode()) or _walk(MAP, "e\u0301".encode())


@given(st.integers(0, len(MAP) - 1), st.integers(0, 255), st.text(max_size=12))
def test_what_passes_is_safe_to_walk(position: int, value: int, text: str) -> None:
    """A damaged map is refused, or no text leads out of it."""
    data = bytearray(MAP)
    data[position] = value
    with contextlib.suppress(FormatError):
        charsmap.check(bytes(data), PATH)
        _walk(bytes(data), text.encode())


def test_a_hostile_map_takes_little_time() -> None:
    """The largest map allowed, all of whose entries are reached, is checked in seconds."""
    n = (1 << 18) - 64
    data = _entries(*((i & 0xFF) | (i ^ 1) << 10 & 0x7FFFFC00 for i in range(n))) + b"\0\0"
    start = time.monotonic()
    with contextlib.suppress(FormatError):
        charsmap.check(data, PATH)
    assert time.monotonic() - start < 20
