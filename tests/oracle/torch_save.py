"""A writer of the files that torch.save writes, without torch."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest


class FakeTorch:
    """Writes what torch.save writes, without torch: Python's own pickler over stand-ins with torch's names.

    The stand-ins live in `sys.modules` for the time of a call only.
    """

    KINDS: ClassVar[dict[str, str]] = {
        "<f4": "FloatStorage", "<f2": "HalfStorage", "<u2": "BFloat16Storage", "<f8": "DoubleStorage",
        "<i8": "LongStorage", "|u1": "ByteStorage", "|b1": "BoolStorage",
    }  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def dumps(self, state: Any, protocol: int = 2) -> tuple[bytes, list[np.ndarray]]:
        """Pickle *state*, where arrays stand for tensors, and return the storages too; uint16 stands for bfloat16."""
        utils, torch = ModuleType("torch._utils"), ModuleType("torch")
        for module, name in ((utils, "_rebuild_tensor_v2"), (utils, "_rebuild_parameter")):
            setattr(module, name, self._named(module, name))
        for kind in self.KINDS.values():
            setattr(torch, kind, self._named(torch, kind))
        storages: list[np.ndarray] = []
        file = io.BytesIO()
        with self._monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch", torch)
            patch.setitem(sys.modules, "torch._utils", utils)
            _pickler(file, protocol, torch, utils, storages).dump(state)
        return file.getvalue(), storages

    def save(self, path: Path, state: Any, protocol: int = 2, root: str = "archive") -> Path:
        """Write *state* as a .bin file."""
        data, storages = self.dumps(state, protocol)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{root}/data.pkl", data)
            file.writestr(f"{root}/byteorder", "little")
            for number, storage in enumerate(storages):
                file.writestr(f"{root}/data/{number}", storage.tobytes())
            file.writestr(f"{root}/version", "3\n")
        return path

    @staticmethod
    def _named(module: ModuleType, name: str) -> type:
        return type(name, (), {"__module__": module.__name__, "__qualname__": name})


class Parameter:
    """A tensor wrapped as torch.nn.Parameter wraps it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data


class _Storage:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


def _pickler(file: Any, protocol: int, torch: Any, utils: Any, storages: list[np.ndarray]) -> pickle.Pickler:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, _Storage):
                return None
            places = [n for n, known in enumerate(storages) if known.ctypes.data == value.array.ctypes.data]
            if not places:
                places = [len(storages)]
                storages.append(value.array)
            kind = getattr(torch, FakeTorch.KINDS[value.array.dtype.str])
            return ("storage", kind, str(places[0]), "cpu", value.array.size)

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Parameter):
                return utils._rebuild_parameter, (value.data, True, OrderedDict())
            if not isinstance(value, np.ndarray):
                return NotImplemented
            base = value if value.base is None else value.base
            assert isinstance(base, np.ndarray)
            start = (value.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // value.itemsize
            strides = tuple(s // value.itemsize for s in value.strides)
            parts = (_Storage(base.reshape(-1) if base.ndim != 1 else base), start, value.shape, strides, False)
            return utils._rebuild_tensor_v2, (*parts, OrderedDict())

    return Pickler(file, protocol)
