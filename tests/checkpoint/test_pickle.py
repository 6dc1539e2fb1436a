from __future__ import annotations

import os
import pickle
import pickletools
import struct
import subprocess
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint import _pickle
from pipeline.checkpoint._pickle import read_state_dict
from pipeline.errors import FormatError, InputError, UnsupportedError

REAL = Path(__file__).parent.parent / "fixtures" / "checkpoints" / "bloom_bin" / "pytorch_model.bin"
OPCODES = sorted(ord(opcode.code) for opcode in pickletools.opcodes)


def _real() -> bytes:
    data = REAL.read_bytes()
    start = data.index(b"\x80\x02}q\x00(")
    return data[start : start + 2989]


class _Evil:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (_Evil(os.system, ("true",)), "posix.system"),
        (_Evil(eval, ("1",)), "builtins.eval"),
        (_Evil(subprocess.Popen, (["true"],)), ".Popen"),
        (_Evil(getattr, ("a", "join")), "builtins.getattr"),
        (np.float64, "numpy"),
        (OrderedDict, None),
    ],
)
def test_other_names_are_refused_by_name_and_place(evil: Any, name: str | None, protocol: int) -> None:
    """What is not on the list is never imported: its name and its byte are in the message."""
    data = pickle.dumps({"w": evil}, protocol)
    with pytest.raises(UnsupportedError) as error:
        read_state_dict(data, "x.bin, data.pkl")
    if name:
        assert name.replace("posix", "") in str(error.value).replace("__builtin__", "builtins")
        assert "x.bin, data.pkl, byte" in str(error.value)
        assert "nothing was run" in str(error.value)
    else:  # an allowed name is no tensor either
        assert "something else than tensors" in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\n.",
        b"\x80\x02c__builtin__\nexec\n.",
        b"\x80\x02ctorch\nFloatStorage.__init__\n.",
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93.",
        b"\x80\x02(S'x'\nios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02)\x81.",  # NEWOBJ
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02}}X\x08\x00\x00\x00__dict__}sb.",
    ],
)
def test_tricks_are_refused(data: bytes) -> None:
    """Near misses of the list, other ways to call, and attributes are refused as such."""
    with pytest.raises(UnsupportedError, match="nothing was run"):
        read_state_dict(data, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends early"),
        (b"\x80\x02}", "ends early"),
        (b"\x80\x02.", "does not end properly"),
        (b"\x80\x02}}.", "does not end properly"),
        (b"\x80\x02}.}", "does not end properly"),
        (b"\x80\x02(}.", "does not end properly"),
        (b"\x80\x09}.", "unknown protocol"),
        (b"\x80\x02t.", "takes more than there is"),
        (b"\x80\x02}(\x85.", "takes more than there is"),
        (b"\x80\x02h\x05.", "memo"),
        (b"\x80\x02}K\x01K\x02s.", "fills a dict wrongly"),
        (b"\x80\x02}(X\x01\x00\x00\x00au.", "fills a dict wrongly"),
        (b"\x80\x02]}a}e.", "takes more than there is"),
        (b"\x80\x02K\x01K\x02a.", "fills a list wrongly"),
        (b"\x80\x02}X\x01\x00\x00\x00aNsX\x01\x00\x00\x00aNs.", "has a name twice"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "ends early"),
        (b"\x80\x02c" + b"a" * 400 + b"\n.", "without an end"),
        (b"\x80\x02K\x01Q.", "something else than a storage"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "impossible parts"),
        (b"\x80\x04K\x01K\x02\x93.", "imports no name"),
    ],
)
def test_broken_pickles(data: bytes, message: str) -> None:
    """Each way to be broken has its message, with the byte."""
    with pytest.raises(FormatError, match=message):
        read_state_dict(data, "x")


@pytest.mark.parametrize("value", [b"K\x01", b"N", b"}", b"]", b"X\x01\x00\x00\x00b", b"G" + struct.pack(">d", 1.5)])
def test_only_tensors(value: bytes) -> None:
    """A training checkpoint, with steps or dicts in it, is told from a state dict."""
    with pytest.raises(UnsupportedError, match="something else than tensors"):
        read_state_dict(b"\x80\x02}X\x01\x00\x00\x00a" + value + b"s.", "x")
    with pytest.raises(UnsupportedError, match="is no state dict"):
        read_state_dict(b"\x80\x02" + value.replace(b"}", b"N") + b".", "x")


def _tuples_in_tuples(depth: int) -> bytes:
    """A tuple of twice a tuple of twice ...: its hash or its text would take 2**depth steps."""
    return b"\x80\x02)" + b"q\x00h\x00\x86" * depth


@pytest.mark.parametrize(
    "data",
    [
        _tuples_in_tuples(100_000) + b".",
        b"\x80\x02}" + _tuples_in_tuples(1000)[2:] + b"Ns.",
        b"\x80\x02" + _tuples_in_tuples(1000)[2:] + b"Q.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + _tuples_in_tuples(1000)[2:] + b"R.",
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",  # a dict in itself
    ],
)
def test_endless_values_end(data: bytes) -> None:
    """Values that grow when they are looked at are never looked at."""
    started = time.monotonic()
    with pytest.raises(InputError):
        read_state_dict(data, "x")
    assert time.monotonic() - started < 5


def test_size_and_steps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long pickle nor one of many steps is followed to its end."""
    monkeypatch.setattr(_pickle, "MAX_OPCODES", 50_000)
    tracemalloc.start()
    with pytest.raises(FormatError, match="too many opcodes"):
        read_state_dict(b"\x80\x02" + b"}" * 1_000_000, "x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000 * 150
    with pytest.raises(UnsupportedError, match="too big"):
        read_state_dict(bytes(_pickle.MAX_BYTES + 1), "x")


def _read(data: bytes) -> None:
    try:
        tensors = read_state_dict(data, "x")
    except InputError:
        return
    for tensor in tensors.values():
        assert len(tensor.shape) == len(tensor.stride)


@given(st.lists(st.sampled_from(OPCODES) | st.integers(0, 255), max_size=200).map(bytes))
def test_any_opcodes(data: bytes) -> None:
    """Any sequence of opcodes is read or refused with an error of ours, never otherwise."""
    _read(b"\x80\x02" + data)


@given(st.data())
def test_any_damage(data: st.DataObject) -> None:
    """So is a real pickle with bytes changed, taken out or put in."""
    damaged = bytearray(_real())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        piece = data.draw(st.binary(max_size=3))
        damaged[at : at + data.draw(st.integers(0, 3))] = piece
    _read(bytes(damaged))


def test_the_real_pickle() -> None:
    """A pickle by torch itself gives its windows."""
    tensors = read_state_dict(_real(), "x")
    assert len(tensors) == 29
    assert tensors["transformer.ln_f.bias"].shape == (64,)
