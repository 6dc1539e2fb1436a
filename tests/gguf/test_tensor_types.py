"""The table of tensor types against ggml's own."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.gguf import padded, tensor_bytes, tensor_type
from pipeline.gguf.tensor_types import BY_ID, BY_NAME


def test_both_tables_hold_the_same_rows() -> None:
    """Every name has one id and every id one name."""
    assert sorted(BY_NAME.values()) == sorted(BY_ID.values())


@pytest.mark.native
def test_rows_are_those_of_the_vendored_ggml(libgguf: Any) -> None:
    """Each type number has the block size and byte size that libggml gives it, and none is missing."""
    n_types = max(BY_ID) + 1
    for type_id in range(n_types):
        row = libgguf.type_row(type_id)
        mine = BY_ID.get(type_id)
        assert (row is None) == (mine is None), type_id
        if row is not None and mine is not None:
            assert (row[0].upper(), row[1], row[2]) == (mine.name.upper(), mine.block, mine.n_bytes)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [("F32", (2, 3), 24), ("BF16", (5,), 10), ("Q4_K", (2, 512), 576), ("Q8_0", (3, 2, 32), 204), ("F32", (), 4)],
)
def test_sizes(kind: str, shape: tuple[int, ...], expected: int) -> None:
    """A tensor's size is its number of blocks times the bytes of a block."""
    assert tensor_bytes(kind, shape) == expected


def test_a_row_must_be_whole_blocks() -> None:
    """A row that ends inside a block is refused, even if the tensor's total would fit."""
    with pytest.raises(FormatError, match="multiple of 256"):
        tensor_bytes("Q4_K", (2, 128))


def test_an_unknown_type_is_refused() -> None:
    """A name that ggml does not know is an error that lists the known ones."""
    with pytest.raises(FormatError, match="Q4_K") as error:
        tensor_type("Q4_X")
    assert error.value.found == "Q4_X"


def test_padding() -> None:
    """Sizes are rounded up to the alignment, and exact multiples stay."""
    assert [padded(n) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
    assert padded(33, 64) == 64
