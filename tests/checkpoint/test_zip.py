from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import _zip
from pipeline.checkpoint._zip import read_directory
from pipeline.errors import FormatError, InputError, UnsupportedError

REAL = Path(__file__).parent.parent / "fixtures" / "checkpoints" / "bloom_bin" / "pytorch_model.bin"


def _zip_of(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return bytearray(file.getvalue())


def _directory(path: Path, data: bytes) -> dict[str, _zip.Entry]:
    path.write_bytes(data)
    with path.open("rb") as file:
        return read_directory(path, file)


def test_real_files(tmp_path: Path) -> None:
    """What torch and Python write is read as Python's zipfile reads it, with the data's own offsets."""
    for number, data in enumerate((REAL.read_bytes(), _zip_of({"r/a": b"abc", "r/b/0": b"", "r/b/1": b"xyz"}))):
        path = tmp_path / str(number)
        entries = _directory(path, data)
        with zipfile.ZipFile(path) as archive:
            assert list(entries) == archive.namelist()
            for name, entry in entries.items():
                assert bytes(data[entry.offset : entry.offset + entry.n_bytes]) == archive.read(name)


def test_zip64(tmp_path: Path) -> None:
    """Sizes and offsets beyond 4 GiB are taken from the zip64 fields; the file here is sparse."""
    path = tmp_path / "big"
    n = (1 << 32) + 5
    with path.open("wb") as file:
        head = b"r/big"
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 45, 8, 0, 0, 0, 0, 0, 0, len(head), 0) + head)
        file.seek(n, 1)
        second = file.tell()
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 7, 2, 2, 3, 0) + b"r/x" + b"ab")
        start, ones = file.tell(), 0xFFFF_FFFF
        sizes = struct.pack("<2H2Q", 1, 16, n, n)
        row = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 8, 0, 0, 0, 0, ones, ones, 5, len(sizes), 0, 0, 0, 0, 0)
        place = struct.pack("<2HQ", 1, 8, second)
        last = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, 7, 2, 2, 3, len(place), 0, 0, 0, 0, ones)
        directory = row + head + sizes + last + b"r/x" + place
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(directory), start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, ones, ones, 0)
        file.write(directory + record + locator + end)
    with path.open("rb") as file:
        entries = read_directory(path, file)
    assert entries == {
        "r/big": _zip.Entry("r/big", 35, n, 0),
        "r/x": _zip.Entry("r/x", second + 33, 2, 7),
    }


@pytest.mark.parametrize(
    "name", ["../a", "r/../a", "/a", "r//a", "r/./a", "r/a/", "r\\a", "C:/a", "r/\x01", "", "r/" + "a" * 1000]
)
def test_names(tmp_path: Path, name: str) -> None:
    """Names that leave the folder, name a folder or cannot be printed are refused, though nothing is extracted."""
    data = _zip_of({"r/ok": b"1"}) if not name else b""
    with pytest.raises(FormatError, match=r"impossible name|is no sound zip"):
        _directory(tmp_path / "x", data.replace(b"r/ok", b"r/\0k") if data else _zip_of({name: b"1"}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_twice(tmp_path: Path) -> None:
    """Two entries of one name are refused: readers disagree which one counts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("r/a", b"1")
        archive.writestr("r/a", b"2")
    with pytest.raises(FormatError, match="two entries are called 'r/a'"):
        _directory(tmp_path / "x", file.getvalue())


def test_compressed(tmp_path: Path) -> None:
    """A compressed entry is refused as such, with what to do."""
    with pytest.raises(UnsupportedError, match="compressed or encrypted"):
        _directory(tmp_path / "x", _zip_of({"r/a": b"1" * 100}, zipfile.ZIP_DEFLATED))


GOOD = bytes(_zip_of({"r/a": b"12345678", "r/b": b"abcdefgh"}))
CENTRAL = GOOD.index(b"PK\x01\x02")
END = GOOD.index(b"PK\x05\x06")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (14, b"\1\1\1\1", "contradict"),  # the local CRC
        (18, b"\7\0\0\0", "contradict"),  # the local size
        (30, b"q", "contradict"),  # the local name
        (0, b"PK\3\5", "not whole"),
        (CENTRAL + 8, b"\1\0", "compressed or encrypted"),  # flags: encrypted
        (CENTRAL + 20, b"\7\0\0\0", "two sizes"),
        (CENTRAL + 20, b"\x09\0\0\0\x09\0\0\0", "contradict"),
        (CENTRAL + 20, b"\xff\xff\0\0\xff\xff\0\0", "not whole"),
        (CENTRAL + 20, b"\xff\xff\xff\xff\xff\xff\xff\xff", "zip64"),
        (CENTRAL + 32, b"\5\0", "directory"),  # a comment
        (CENTRAL + 42, b"\1\0\0\0", "hole"),
        (CENTRAL + 49 + 42, b"\0\0\0\0", "overlaps"),
        (CENTRAL, b"PK\1\3", "directory is broken"),
        (END + 4, b"\1\0", "several"),
        (END + 8, b"\1\0\1\0", "longer than its entries"),
        (END + 8, b"\3\0\3\0", "ends early"),
        (END + 12, b"\1\0", "elsewhere"),
        (END + 16, b"\1\0", "elsewhere"),
        (END + 20, b"\1\0", "end record"),
    ],
)
def test_contradictions(tmp_path: Path, at: int, value: bytes, message: str) -> None:
    """Each rule of the container that is broken has its message."""
    data = bytearray(GOOD)
    data[at : at + len(value)] = value
    with pytest.raises(InputError, match=message):
        _directory(tmp_path / "x", data)


@pytest.mark.parametrize("n", [0, 10, 40, CENTRAL, END, len(GOOD) - 1])
def test_cut_short(tmp_path: Path, n: int) -> None:
    """A file that stops half way has no end record, and says so."""
    with pytest.raises(FormatError, match=r"too short|cut short"):
        _directory(tmp_path / "x", GOOD[:n])


@pytest.mark.parametrize("data", [b"junk" + GOOD, GOOD[:CENTRAL] + b"junk" + GOOD[CENTRAL:], GOOD + b"\0"])
def test_bytes_between(tmp_path: Path, data: bytes) -> None:
    """Bytes before, between or behind are refused."""
    with pytest.raises(FormatError):
        _directory(tmp_path / "x", data)


@given(st.data())
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A file with bytes changed is read or refused with an error of ours; every span lies in the file, apart."""
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        entries = _directory(tmp_path_factory.getbasetemp() / "damaged", damaged)
    except InputError:
        return
    at = 0
    for entry in entries.values():
        assert at <= entry.offset <= entry.offset + entry.n_bytes <= len(damaged)
        at = entry.offset + entry.n_bytes
