"""What no file may hold: weights that are not finite, and blocks that float16 has no scale for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline import quant
from pipeline.errors import FormatError
from pipeline.types import PlannedTensor

# Exponent bits that are all ones mean Inf or NaN; a magnitude from here on is not finite.
_NOT_FINITE: dict[str, tuple[Any, int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "MXFP4": (np.uint8, 0xFF, 0xFF),  # the scale of a block, its first byte
}


def check_finite(engine: quant.Engine, raw: np.ndarray, dtype: str, tensor: PlannedTensor, first_row: int) -> None:
    """Refuse NaN and Inf by their exponent bits, before decoding.

    Args:
        engine: what looks.
        raw: rows of *tensor* from *first_row* on, as they were read: uint8 (n_rows, row_bytes), C-contiguous.
        dtype: their type; others than BF16, F16, F32 and MXFP4 are not looked at.
        tensor: what they belong to.
        first_row: where they begin.

    Raises:
        FormatError: if there is one; it says where.
    """
    if dtype not in _NOT_FINITE:
        return
    unsigned, mask, limit = _NOT_FINITE[dtype]
    kind = quant.get(dtype)
    is_packed = kind.block_size > 1
    bits = raw.reshape(len(raw), -1, kind.type_size)[..., 0] if is_packed else raw.view(unsigned)
    largest = int(bits.max(initial=0)) if is_packed else engine.largest_magnitude(bits)
    if largest >= limit:
        magnitude = bits & unsigned(mask)
        row, column = (int(i) for i in np.argwhere(magnitude >= limit)[0])
        sources = tensor.view.sources if tensor.view else ()
        place = f"row {first_row + row}, column {column * kind.block_size} of {tensor.name}"
        raise FormatError(
            "a weight is NaN or Inf",
            where=", ".join(f"{s.path.name}, tensor {s.name}" for s in sources[:1]) or tensor.name,
            expected="finite weights",
            found=f"bits {int(bits[row, column]):#x} in {place}",
            hint="the checkpoint is damaged or its training diverged; download it again or take another one",
        )


def check_encoded(
    engine: quant.Engine, part: np.ndarray, values: Callable[[], np.ndarray], tensor: PlannedTensor, first_row: int
) -> None:
    """Refuse weights or scales that float16 cannot hold, as llama-quantize's check of rows does.

    Args:
        engine: what looks.
        part: rows of *tensor* from *first_row* on, encoded: uint8 (n_rows, row_bytes).
        values: gives what was encoded, float32 (n_rows, n_cols).
        tensor: what they belong to.
        first_row: where they begin.

    Raises:
        FormatError: if there are such; it says where.
    """
    kind = quant.get(tensor.type)
    if kind.name == "F16":
        halves = part.view(np.uint16)
        if engine.largest_magnitude(halves) >= 0x7C00:
            infinite = (halves & np.uint16(0x7FFF)) >= np.uint16(0x7C00)
            row, column = (int(i) for i in np.argwhere(infinite)[0])
            raise FormatError(
                "a weight is too large for float16",
                where=f"tensor {tensor.name}, row {first_row + row}, column {column}",
                expected="at most 65504 in magnitude",
                found=float(values()[row, column]),
                hint="use BF16 or F32 instead",
            )
    if engine.has_bad_scale(kind, part) and (place := kind.bad_scale(part)):
        row, column = place[0], place[1] * kind.block_size
        block = values()[row, column : column + kind.block_size]
        raise FormatError(
            f"weights are too large for {kind.name}: a scale does not fit into float16",
            where=f"tensor {tensor.name}, row {first_row + row}, columns {column} to {column + kind.block_size - 1}",
            expected="scales of at most 65504 in magnitude",
            found=f"weights up to {float(np.abs(block).max()):g}",
            hint="use BF16 or F32 instead; are these weights meant?",
        )
