"""libggml of the built llama.cpp, called in this process: rows of float32 become blocks, and blocks float32."""

from __future__ import annotations

import ctypes as ct
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import ToolError
from pipeline.runtime.llama import BUILD_HINT, find_llama


class _TypeTraits(ct.Structure):
    """`struct ggml_type_traits`."""

    _fields_: ClassVar[Any] = [
        ("type_name", ct.c_char_p),
        ("blck_size", ct.c_int64),
        ("blck_size_interleave", ct.c_int64),
        ("type_size", ct.c_size_t),
        ("is_quantized", ct.c_bool),
        ("to_float", ct.CFUNCTYPE(None, ct.c_void_p, ct.c_void_p, ct.c_int64)),
        ("from_float_ref", ct.c_void_p),
    ]


class Ggml:
    """The functions of libggml-base that convert rows; arrays go by their address, types by their number."""

    def __init__(self, path: Path) -> None:
        try:
            self._lib = ct.CDLL(str(path))
            self._lib.ggml_quantize_chunk.restype = ct.c_size_t
            self._lib.ggml_quantize_chunk.argtypes = [
                ct.c_int, ct.c_void_p, ct.c_void_p, ct.c_int64, ct.c_int64, ct.c_int64, ct.c_void_p
            ]  # fmt: skip
            self._lib.ggml_get_type_traits.restype = ct.POINTER(_TypeTraits)
        except (OSError, AttributeError) as e:
            raise ToolError("llama.cpp's library cannot be used", where=path, found=e, hint=BUILD_HINT) from e
        self._path = path

    def check(self, type_id: int, name: str, block_size: int, type_size: int) -> None:
        """Refuse a library whose type of this number is another one.

        Raises:
            ToolError: if name, elements or bytes of a block differ.
        """
        traits = self._lib.ggml_get_type_traits(type_id).contents
        found = (str((traits.type_name or b"").decode()).upper(), traits.blck_size, traits.type_size)
        if found != (name, block_size, type_size):
            raise ToolError(
                "llama.cpp's library knows another type by this number",
                where=self._path,
                expected=f"{name}, {block_size} elements in {type_size} bytes",
                found=found,
                hint=BUILD_HINT,
            )

    def quantize(self, type_id: int, x: int, out: int, shape: tuple[int, int], importance: int | None) -> None:
        """Quantize rows of *shape* (n_rows, n_cols), float32 at address *x*, into *out* (`ggml_quantize_chunk`).

        *importance* is the address of float32 (n_cols,).
        """
        self._lib.ggml_quantize_chunk(type_id, x, out, 0, *shape, importance)

    def dequantize(self, type_id: int, data: int, out: int, n: int) -> None:
        """Expand blocks at address *data* to *n* float32 at *out* (`to_float` of the type)."""
        self._lib.ggml_get_type_traits(type_id).contents.to_float(data, out, n)


@cache
def _open(path: Path) -> Ggml:
    return Ggml(path)


def require_ggml(purpose: str) -> Ggml:
    """Open the library of the built llama.cpp; *purpose* says what for.

    Raises:
        ToolError: if there is none.
    """
    found = find_llama()
    if found is None:
        raise ToolError(f"{purpose} needs llama.cpp's library, which is not built", hint=BUILD_HINT)
    return _open(found.library("ggml-base"))
