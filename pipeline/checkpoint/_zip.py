"""Read the directory of a zip file whose entries are stored as they are, strictly; nothing is extracted.

The format: PKWARE's APPNOTE 6.3.  Of its freedoms only those are taken that torch.save uses: entries stand one behind
the other, uncompressed and unencrypted, then comes the central directory, perhaps the zip64 records, and the end record
as the last 22 bytes.  Central directory and local headers must agree, so no two readers can see different files.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from pipeline.errors import FormatError, UnsupportedError

MAX_ENTRIES = 200_000
MAX_NAME = 1_000

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64_MAGIC, _LOCATOR_MAGIC = b"PK\x06\x06", b"PK\x06\x07"
_ALL16, _ALL32 = 0xFFFF, 0xFFFF_FFFF  # "the value is in the zip64 record"
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11  # flags: sizes follow the data, names are UTF-8
_MAX_DESCRIPTOR = 24  # signature, CRC, two sizes of 8 bytes
_ZIP64_EXTRA = 1
_AGAIN = "download the file again; if that does not help, save it again with torch.save"


@dataclass(frozen=True)
class Entry:
    """One stored file: its bytes are those from *offset*, absolute, on."""

    name: str
    offset: int
    n_bytes: int
    crc: int


class _Directory(NamedTuple):
    """Where the central directory lies."""

    offset: int
    n_bytes: int
    n_entries: int


class _Row(NamedTuple):
    """What the central directory says of one entry; *header* is the offset of its local header."""

    name: str
    flags: int
    crc: int
    n_bytes: int
    header: int


def read_directory(path: Path, file: BinaryIO) -> dict[str, Entry]:
    """Read and check the directory of the zip *file*, which lies at *path*; entries are in the order of their data.

    Raises:
        FormatError: if it is no zip, cut short, or breaks one of the rules above.
        UnsupportedError: if an entry is compressed or encrypted, or there are too many.
    """
    size = os.fstat(file.fileno()).st_size
    directory = _find_directory(path, file, size)
    rows = _read_rows(path, file, directory)
    rows.sort(key=lambda row: row.header)
    entries: dict[str, Entry] = {}
    at, slack = 0, 0
    for row in rows:
        if not at <= row.header <= at + slack:
            what = "overlaps the entry before it" if row.header < at else "leaves a hole before it"
            raise _bad(path, row.header, f"the entry {row.name!r} {what}", f"byte {at}", f"byte {row.header}")
        if row.name in entries:
            raise _bad(path, row.header, f"two entries are called {row.name!r}", "one", "two")
        offset = _data_offset(path, file, row, directory.offset)
        entries[row.name] = Entry(row.name, offset, row.n_bytes, row.crc)
        at, slack = offset + row.n_bytes, _MAX_DESCRIPTOR if row.flags & _DESCRIPTOR else 0
    if not at <= directory.offset <= at + slack:
        raise _bad(path, at, "bytes belong to no entry", f"the directory at byte {at}", f"byte {directory.offset}")
    return entries


def _bad(path: Path, at: int, what: str, expected: object, found: object) -> FormatError:
    return FormatError(
        f"is no sound zip file: {what}", where=f"{path}, byte {at}", expected=expected, found=found, hint=_AGAIN
    )


def _read_at(path: Path, file: BinaryIO, offset: int, n: int) -> bytes:
    file.seek(offset)
    data = file.read(n)
    if len(data) != n:
        raise _bad(path, offset, "it ends early", f"{n} bytes", f"{len(data)} bytes")
    return data


def _find_directory(path: Path, file: BinaryIO, size: int) -> _Directory:
    """Read the end record, and the zip64 records before it; the directory must end where they begin."""
    if size < _END.size:
        raise _bad(path, 0, "it is too short", f"at least {_END.size} bytes", f"{size} bytes")
    at = size - _END.size
    magic, disk, first_disk, n_here, n, length, offset, comment = _END.unpack(_read_at(path, file, at, _END.size))
    if magic != _END_MAGIC or comment:
        raise _bad(path, at, "it does not end with an end record (is it cut short?)", _END_MAGIC, magic)
    if disk or first_disk or n_here != n:
        raise _bad(path, at, "it is one part of several", "one disk", f"disk {disk} of {first_disk}")
    found, end = _Directory(offset, length, n), at
    if at >= _LOCATOR.size and _read_at(path, file, at - _LOCATOR.size, 4) == _LOCATOR_MAGIC:
        found, end = _zip64_directory(path, file, at - _LOCATOR.size, found)
    if found.offset + found.n_bytes != end:
        raise _bad(path, end, "its directory is elsewhere", f"its end at byte {end}", found)
    if found.n_entries > MAX_ENTRIES or found.n_bytes > found.n_entries * (_CENTRAL.size + MAX_NAME + 64):
        raise UnsupportedError("has too many entries", where=path, expected=f"at most {MAX_ENTRIES:,}", found=found)
    return found


def _zip64_directory(path: Path, file: BinaryIO, at: int, short: _Directory) -> tuple[_Directory, int]:
    """Return what the zip64 end record says, and its offset; *short* is what the plain one says."""
    _, disk, record, n_disks = _LOCATOR.unpack(_read_at(path, file, at, _LOCATOR.size))
    if disk or n_disks != 1 or record + _END64.size != at:
        raise _bad(path, at, "its zip64 record is elsewhere", f"byte {at - _END64.size}", f"byte {record}")
    values = _END64.unpack(_read_at(path, file, record, _END64.size))
    magic, length, _, _, disk, first_disk, n_here, n, n_bytes, offset = values
    if magic != _END64_MAGIC or length != _END64.size - 12 or disk or first_disk or n_here != n:
        raise _bad(path, record, "its zip64 record is broken", _END64_MAGIC, values)
    full = _Directory(offset, n_bytes, n)
    limits = _Directory(_ALL32, _ALL32, _ALL16)
    for plain, wide, limit in zip(short, full, limits, strict=True):
        if plain not in (wide, limit):
            raise _bad(path, record, "its two end records contradict each other", plain, wide)
    return full, record


def _read_rows(path: Path, file: BinaryIO, directory: _Directory) -> list[_Row]:
    data = _read_at(path, file, directory.offset, directory.n_bytes)
    rows, at = [], 0
    for _ in range(directory.n_entries):
        row, at = _read_row(path, data, at, directory.offset)
        rows.append(row)
    if at != len(data):
        raise _bad(path, directory.offset + at, "its directory is longer than its entries", at, len(data))
    return rows


def _read_row(path: Path, data: bytes, at: int, base: int) -> tuple[_Row, int]:
    place = base + at
    if at + _CENTRAL.size > len(data):
        raise _bad(path, place, "its directory ends early", f"{_CENTRAL.size} bytes", f"{len(data) - at} bytes")
    values = _CENTRAL.unpack_from(data, at)
    magic, _, _, flags, method, _, _, crc, packed, plain, n_name, n_extra, n_comment, disk, _, _, header = values
    end = at + _CENTRAL.size + n_name + n_extra + n_comment
    if magic != _CENTRAL_MAGIC or disk or n_comment or end > len(data):
        raise _bad(path, place, "its directory is broken", _CENTRAL_MAGIC, magic)
    at += _CENTRAL.size
    name = _name(path, data[at : at + n_name], place)
    if method or flags & ~(_DESCRIPTOR | _UTF8):
        raise UnsupportedError(
            f"the entry {name!r} is compressed or encrypted",
            where=f"{path}, byte {place}",
            expected="a stored entry",
            found=f"method {method}, flags {flags:#x}",
            hint="this is not as torch.save writes it: load it with torch and save it again",
        )
    plain, packed, header = _widened(path, data[at + n_name : at + n_name + n_extra], (plain, packed, header), place)
    if plain != packed:
        raise _bad(path, place, f"the entry {name!r} has two sizes", plain, packed)
    return _Row(name, flags, crc, plain, header), end


def _name(path: Path, raw: bytes, place: int) -> str:
    """Check an entry's name: a relative path of printable characters that stays below its folder, and no folder."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    parts = name.split("/")
    is_plain = 0 < len(name) <= MAX_NAME and name.isprintable() and "\\" not in name and ":" not in parts[0]
    if not is_plain or any(part in ("", ".", "..") for part in parts) or PurePosixPath(name).is_absolute():
        raise _bad(path, place, "an entry has an impossible name", "folder/file", repr(raw[:80]))
    return name


def _widened(path: Path, extra: bytes, values: tuple[int, int, int], place: int) -> tuple[int, ...]:
    """Replace those of *values* that are all ones by those of the zip64 field, which has them in the same order."""
    n_wide = values.count(_ALL32)
    if not n_wide:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64_EXTRA and length >= 8 * n_wide and at + 4 + length <= len(extra):
            wide = iter(struct.unpack_from(f"<{n_wide}Q", extra, at + 4))
            return tuple(next(wide) if value == _ALL32 else value for value in values)
        at += 4 + length
    raise _bad(path, place, "an entry lacks its zip64 sizes", f"{n_wide} sizes", extra[:40].hex())


def _data_offset(path: Path, file: BinaryIO, row: _Row, limit: int) -> int:
    """Return where the data of *row* begins, once its local header agrees and it ends before *limit*."""
    head = _read_at(path, file, row.header, _LOCAL.size)
    magic, _, flags, method, _, _, crc, packed, plain, n_name, n_extra = _LOCAL.unpack(head)
    offset = row.header + _LOCAL.size + n_name + n_extra
    if magic != _LOCAL_MAGIC or offset + row.n_bytes > limit:
        raise _bad(path, row.header, f"the entry {row.name!r} is not whole", _LOCAL_MAGIC, magic)
    name = _read_at(path, file, row.header + _LOCAL.size, n_name)
    # Before the data was written its size may have been unknown: zeros, and a descriptor behind the data.
    unknown = (0, 0, 0) if flags & _DESCRIPTOR else None
    wide = _ALL32 if _ALL32 in (packed, plain) else row.n_bytes
    agrees = (crc, packed, plain) in (unknown, (row.crc, wide, wide), (row.crc, row.n_bytes, row.n_bytes))
    if name != row.name.encode() or (flags, method) != (row.flags, 0) or not agrees:
        raise _bad(
            path, row.header, f"header and directory contradict each other over {row.name!r}", row, (name, flags, plain)
        )
    return int(offset)
