"""llama.cpp's own quantization as the oracle: rows of float32 come in, bytes go out, and back.

ctypes over libggml-base of the vendored version: the reference code, single-threaded.
"""

from __future__ import annotations

import ctypes as ct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


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


class LibGgml:
    """The functions of libggml-base that turn float32 into blocks and back; types go by their number."""

    def __init__(self, path: Path) -> None:
        self._lib = ct.CDLL(str(path))
        self._lib.ggml_quantize_chunk.restype = ct.c_size_t
        self._lib.ggml_quantize_chunk.argtypes = [ct.c_int, ct.c_void_p, ct.c_void_p, *[ct.c_int64] * 3, ct.c_void_p]
        self._lib.ggml_get_type_traits.restype = ct.POINTER(_TypeTraits)
        self._lib.ggml_quantize_init.argtypes = [ct.c_int]
        self._lib.ggml_quantize_requires_imatrix.restype = ct.c_bool
        self._lib.ggml_validate_row_data.restype = ct.c_bool
        self._lib.ggml_validate_row_data.argtypes = [ct.c_int, ct.c_void_p, ct.c_size_t]

    def name(self, type_id: int) -> str:
        """Return ggml's name of a type, in upper case."""
        return str(self._traits(type_id).type_name.decode()).upper()

    def block_size(self, type_id: int) -> int:
        """Return the elements of a block."""
        return int(self._traits(type_id).blck_size)

    def type_size(self, type_id: int) -> int:
        """Return the bytes of a block."""
        return int(self._traits(type_id).type_size)

    def requires_importance(self, type_id: int) -> bool:
        """Say whether a type cannot be quantized without an importance matrix."""
        return bool(self._lib.ggml_quantize_requires_imatrix(type_id))

    def quantize(
        self, type_id: int, x: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Return the bytes of *x*, (n_rows, n_cols), as uint8 (n_rows, row_bytes); *importance* is (n_cols,)."""
        n_rows, n_cols = x.shape
        out = np.empty((n_rows, n_cols // self.block_size(type_id) * self.type_size(type_id)), np.uint8)
        self.quantize_into(type_id, x, out, importance)
        return out

    def quantize_into(
        self,
        type_id: int,
        x: NDArray[np.float32],
        out: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> None:
        """Write the bytes of *x* to *out*; all C-contiguous."""
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        weights = None
        if importance is not None:
            assert importance.dtype == np.float32
            assert importance.shape == x.shape[1:]
            weights = importance.ctypes.data
        self._lib.ggml_quantize_init(type_id)
        done = self._lib.ggml_quantize_chunk(type_id, x.ctypes.data, out.ctypes.data, 0, *x.shape, weights)
        assert done == out.nbytes

    def dequantize(self, type_id: int, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the values of *data*, (n_rows, row_bytes), as float32 (n_rows, n_cols)."""
        assert data.flags.c_contiguous
        n_rows, row_bytes = data.shape
        out = np.empty((n_rows, row_bytes // self.type_size(type_id) * self.block_size(type_id)), np.float32)
        if type_id == 0:  # F32 has no conversion
            return data.view(np.float32).reshape(out.shape).copy()
        self._traits(type_id).to_float(data.ctypes.data, out.ctypes.data, out.size)
        return out

    def accepts(self, type_id: int, data: NDArray[np.uint8]) -> bool:
        """Say whether llama-quantize's check of rows takes *data*, contiguous blocks."""
        assert data.flags.c_contiguous
        return bool(self._lib.ggml_validate_row_data(type_id, data.ctypes.data, data.nbytes))

    def _traits(self, type_id: int) -> Any:
        return self._lib.ggml_get_type_traits(type_id).contents
