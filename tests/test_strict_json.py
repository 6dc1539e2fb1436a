"""Strict JSON: what is taken, and what is refused by name."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.strict_json import has_file, parse_object, read_bytes, read_json, read_object, read_optional


def test_reads_what_python_writes(tmp_path: Path) -> None:
    """Numbers, text in any script, nesting and Python's Infinity come as they are."""
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, -2.5e-6, true, null, {"b": "\\u00e9é"}], "limit": [0.0, Infinity]}', encoding="utf-8")
    assert read_json(path, 1000) == {"a": [1, -2.5e-6, True, None, {"b": "éé"}], "limit": [0.0, math.inf]}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"[1]", "is not an object"),
        (b'{"a": 1,}', "is not JSON"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "has the key 'b' twice"),
        (b'{"a":' + b'{"a":' * 70 + b"1" + b"}" * 71, "nested too deep"),
        (b"{" + b" " * 1000 + b"}", "is too large"),
        (b'{"' + b"k" * 200 + b'": 1, "' + b"k" * 200 + b'": 1}', "(200 characters)"),
    ],
)
def test_refuses(text: bytes, part: str, tmp_path: Path) -> None:
    """What is not one strict object of bounded size is refused by name."""
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(FormatError) as caught:
        read_json(path, 1000)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)


def test_infinity_only_where_allowed() -> None:
    """A header takes no constant that JSON does not know."""
    with pytest.raises(FormatError, match="-Infinity, which is not JSON"):
        parse_object(b'{"a": -Infinity}', where="header")


def test_constants_where_python_writes_them(tmp_path: Path) -> None:
    """Both readers of config.json take NaN, so that no model is read by one and refused by the other."""
    path = tmp_path / "config.json"
    path.write_text('{"limit": Infinity, "x": NaN}', encoding="utf-8")
    assert read_optional(path)["limit"] == read_json(path)["limit"] == math.inf
    with pytest.raises(FormatError, match="Infinity, which is not JSON"):
        read_object(path)


def test_an_absent_file_is_an_empty_object(tmp_path: Path) -> None:
    """Optional files give nothing where they are missing."""
    assert read_optional(tmp_path / "no.json") == {}


def test_only_files_are_read(tmp_path: Path) -> None:
    """A pipe does not block, a device does not fill the memory, and a broken link is no missing file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"{}")
    for name in ("pipe", "device", "folder"):
        with pytest.raises(FormatError, match=r"is not a file|cannot be read"):
            read_bytes(tmp_path / name, 1000)
    for name in ("pipe", "device", "folder", "broken"):
        with pytest.raises(FormatError, match="is not a file"):
            has_file(tmp_path / name)
    assert [has_file(tmp_path / name) for name in ("file", "link", "none")] == [True, True, False]
