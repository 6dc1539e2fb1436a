"""Read the pickle of a torch.save'd state dict without running anything: a machine that knows tensors and dicts only.

A pickle is a program for a stack machine (PEP 307, PEP 3154).  This one knows the opcodes that torch.save emits for a
dict of tensors; a GLOBAL is never imported but looked up in a short table of names, and "calling" one makes a value of
this module.  Whatever else a pickle says is refused by name and place.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import shorten

MAX_BYTES = 64_000_000
# Each makes one object of at most some 100 bytes, so this bounds the memory; a tensor takes about 40.
MAX_OPCODES = 4_000_000
_MAX_DIMS = 16

STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """One block of elements: the entry data/*key* of the zip file."""

    key: str
    dtype: str
    n_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a window into a storage: *start* and *stride* count elements."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """A name that a pickle may say, standing for what it would import."""

    name: str


_ORDERED_DICT = "collections.OrderedDict"
_REBUILD, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_ALLOWED = {_ORDERED_DICT, _REBUILD, _PARAMETER, *(f"torch.{name}" for name in STORAGES)}


def read_state_dict(data: bytes, where: str) -> dict[str, StoredTensor]:
    """Read *data*, the data.pkl of a checkpoint, as tensors by name; *where* is what messages call it.

    Raises:
        FormatError: if it is no sound pickle.
        UnsupportedError: if it would import or call anything that is not on the list, or holds more than tensors.
    """
    if len(data) > MAX_BYTES:
        raise UnsupportedError("is too big", where=where, expected=f"at most {MAX_BYTES:,} bytes", found=len(data))
    made = _Machine(data, where).run()
    if not isinstance(made, dict):
        raise UnsupportedError("is no state dict", where=where, expected="tensors by name", found=_kind(made))
    for name, value in made.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise UnsupportedError(
                f"holds something else than tensors, under {shorten(name) if isinstance(name, str) else _kind(name)}",
                where=where,
                expected="a flat dict of tensors, as model.state_dict() is",
                found=_kind(value),
                hint="this looks like a training checkpoint: save the state dict of the model alone",
            )
    return made


def _kind(value: object) -> str:
    """Name the kind of *value*; never its content, which may be endless."""
    return value.name if isinstance(value, _Global) else type(value).__name__


class _Machine:
    """One run over one pickle."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._at = 0  # the next byte
        self._opcode_at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return what the pickle makes."""
        for _ in range(MAX_OPCODES):
            self._opcode_at = self._at
            opcode = self._take(1)[0]
            if opcode == ord("."):
                return self._finish()
            step = _STEPS.get(opcode)
            if step is None:
                raise self._refused(f"opcode 0x{opcode:02x}")
            step(self)
        raise self._bad("has too many opcodes", f"at most {MAX_OPCODES:,}", "more")

    def _finish(self) -> Any:
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise self._bad("does not end properly", "one value, and nothing behind it", f"{len(self._stack)} values")
        return self._stack[0]

    def _bad(self, what: str, expected: object, found: object) -> FormatError:
        return FormatError(
            what,
            where=f"{self._where}, byte {self._opcode_at}",
            expected=expected,
            found=found,
            hint="download the file again",
        )

    def _refused(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"asks for {what}, which is no part of a checkpoint; nothing was run",
            where=f"{self._where}, byte {self._opcode_at}",
            expected="tensors by name",
            found=what,
            hint="take the checkpoint's safetensors, or load it where you trust it and save model.state_dict() alone",
        )

    # Bytes and stack.

    def _take(self, n: int) -> bytes:
        piece = self._data[self._at : self._at + n]
        if len(piece) != n:
            raise self._bad("ends early", f"{n} more bytes", f"{len(piece)}")
        self._at += n
        return piece

    def _number(self, n_bytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(n_bytes), "little", signed=signed)

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 300)
        if end < 0:
            raise self._bad("has a name without an end", "a line of at most 300 bytes", "no end of line")
        text = self._text(end - self._at)
        self._at += 1
        return text

    def _text(self, n_bytes: int) -> str:
        try:
            return self._take(n_bytes).decode("utf-8")
        except UnicodeDecodeError as e:
            raise self._bad("has a text that is not UTF-8", "UTF-8", f"byte 0x{e.object[e.start]:02x}") from e

    def _pop(self) -> Any:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor:
            raise self._bad("takes more than there is", "a value", "an empty stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise self._bad("takes more than there is", "a mark", "no mark")
        height = self._marks.pop()
        items = self._stack[height:]
        del self._stack[height:]
        return items

    # Opcodes; their names are those of Python's pickletools.

    def proto(self) -> None:
        version = self._number(1)
        if not 2 <= version <= 5:
            raise self._bad("has an unknown protocol", "2 to 5", version)

    def frame(self) -> None:
        self._take(8)  # how far one may read ahead; it changes nothing

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def integer(self, n_bytes: int, *, signed: bool = False) -> None:
        self.push(self._number(n_bytes, signed=signed))

    def long1(self) -> None:
        self.integer(self._number(1), signed=True)

    def text(self, n_bytes: int) -> None:
        self.push(self._text(self._number(n_bytes)))

    def put(self, n_bytes: int) -> None:
        value = self._pop()
        self.push(value)
        self._memo[self._number(n_bytes) if n_bytes else len(self._memo)] = value

    def get(self, n_bytes: int) -> None:
        number = self._number(n_bytes)
        if number not in self._memo:
            raise self._bad("takes from the memo what is not there", f"one of {len(self._memo)} entries", number)
        self.push(self._memo[number])

    def tuple_of(self, n: int) -> None:
        items = [self._pop() for _ in range(n)]
        self.push(tuple(reversed(items)))

    def tuple_to_mark(self) -> None:
        self.push(tuple(self._pop_to_mark()))

    def set_items(self, *, one: bool) -> None:
        items = [self._pop(), self._pop()][::-1] if one else self._pop_to_mark()
        target = self._pop()
        self.push(target)
        # Texts alone: the hash of tuples in tuples takes time that doubles with each level.
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise self._bad("fills a dict wrongly", "texts and values", f"{len(items)} items for {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key in target:
                raise self._bad("has a name twice", "different names", shorten(key))
            target[key] = value

    def append(self, *, one: bool) -> None:
        items = [self._pop()] if one else self._pop_to_mark()
        target = self._pop()
        self.push(target)
        if not isinstance(target, list):
            raise self._bad("fills a list wrongly", "list", _kind(target))
        target.extend(items)

    def import_line(self) -> None:
        module = self._line()
        self._import(f"{module}.{self._line()}")

    def import_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._bad("imports no name", "two texts", f"{_kind(module)}, {_kind(name)}")
        self._import(f"{module}.{name}")

    def _import(self, name: str) -> None:
        if name not in _ALLOWED:
            raise self._refused(shorten(name).strip("'"))
        self.push(_Global(name))

    def persistent(self) -> None:
        found = self._pop()
        if isinstance(found, tuple) and len(found) == 5:
            tag, kind, key, device, n = found
            dtype = STORAGES.get(kind.name.removeprefix("torch.")) if isinstance(kind, _Global) else None
            if tag == "storage" and dtype and isinstance(key, str) and isinstance(device, str) and _is_count(n):
                self.push(Storage(key, dtype, n))
                return
        raise self._bad("refers to something else than a storage", "('storage', type, key, device, size)", _kind(found))

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise self._refused(f"a call of {_kind(function)}")
        if function.name == _ORDERED_DICT and not arguments:
            self.push({})
        elif function.name == _REBUILD:
            self.push(self._rebuilt(arguments))
        elif function.name == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], StoredTensor):
            self.push(arguments[0])
        else:
            raise self._refused(f"a call of {function.name} with {len(arguments)} arguments")

    def _rebuilt(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """Make a tensor of (storage, start, shape, stride, requires_grad, hooks[, metadata])."""
        if len(arguments) in (6, 7):
            storage, start, shape, stride, _, hooks = arguments[:6]
            is_plain = hooks == {} and arguments[6:] in ((), ({},), (None,))
            is_window = _is_count(start) and _are_counts(shape) and _are_counts(stride) and len(shape) == len(stride)
            if isinstance(storage, Storage) and is_plain and is_window:
                return StoredTensor(storage, start, shape, stride)
        raise self._bad(
            "makes a tensor of impossible parts", "storage, start, shape, stride", f"{len(arguments)} parts"
        )

    def build(self) -> None:
        """Set attributes: torch hangs `_metadata`, versions of modules, on a state dict; it carries no weight."""
        state, target = self._pop(), self._pop()
        self.push(target)
        if not isinstance(target, dict) or not isinstance(state, dict) or list(state) != ["_metadata"]:
            raise self._refused(f"attributes of {_kind(target)}")

    def float64(self) -> None:
        self.push(struct.unpack(">d", self._take(8))[0])


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 60  # type(), because True is an int


def _are_counts(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= _MAX_DIMS and all(map(_is_count, value))


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.proto,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.integer(1),
    ord("M"): lambda m: m.integer(2),
    ord("J"): lambda m: m.integer(4, signed=True),
    0x8A: _Machine.long1,
    ord("G"): _Machine.float64,
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    ord("q"): lambda m: m.put(1),
    ord("r"): lambda m: m.put(4),
    0x94: lambda m: m.put(0),
    ord("h"): lambda m: m.get(1),
    ord("j"): lambda m: m.get(4),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): _Machine.tuple_to_mark,
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items(one=True),
    ord("u"): lambda m: m.set_items(one=False),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.append(one=True),
    ord("e"): lambda m: m.append(one=False),
    ord("c"): _Machine.import_line,
    0x93: _Machine.import_stack,
    ord("Q"): _Machine.persistent,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
