"""Blocks that llama-quantize's check of rows refuses are refused here: the same ones, with their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline import quant
from pipeline.quant import BlockType

WITH_BLOCKS = [kind for kind in quant.types().values() if kind.block_size > 1]


@pytest.mark.native
@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
def test_the_blocks_that_libggml_refuses(kind: BlockType, libggml: Any) -> None:
    """Of blocks of random bytes, those with every bit of a byte or two set in turn among them, the same are bad."""
    random = np.random.default_rng(kind.id)
    blocks = random.integers(0, 256, (kind.type_size * 2 + 200, kind.type_size), np.uint8)
    for at in range(kind.type_size):
        blocks[at, at] = 0xFF
        blocks[kind.type_size + at, at : at + 2] = 0x7F
    wanted = [not libggml.accepts(kind.id, np.ascontiguousarray(block)) for block in blocks]
    assert [kind.bad_scale(block[None]) is not None for block in blocks] == wanted
    assert any(wanted) or kind.name == "NVFP4"  # which has no bad scale
    assert not all(wanted)


@pytest.mark.parametrize("kind", WITH_BLOCKS, ids=str)
def test_the_place_of_the_first_bad_block(kind: BlockType) -> None:
    """Row and block are told, and good blocks are no error."""
    data = np.zeros((3, 4 * kind.type_size), np.uint8)
    assert kind.bad_scale(data) is None
    data[1, 2 * kind.type_size : 3 * kind.type_size] = 0xFF
    data[2] = 0xFF
    assert kind.bad_scale(data) == (None if kind.name == "NVFP4" else (1, 2))
