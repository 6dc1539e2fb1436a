"""A GGUF with a whole vocabulary and next to no weights, so that a llama.cpp server can be asked for tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.gguf import GgufWriter, encode_plan_header, padded, tensor_bytes
from pipeline.types import KV, Plan, PlannedTensor, f32, string, u32

_N_EMBD = 32
_N_CTX = 512


def write_stub(path: Path, vocabulary: Sequence[KV]) -> None:
    """Write a model of one layer of zeros, of llama.cpp's architecture "llama", with the tokenizer.* keys given.

    Raises:
        ResourceError: if the disk has no room (about 64 bytes a token).
    """
    n_tokens = next(len(kv.value) for kv in vocabulary if kv.key == "tokenizer.ggml.tokens")
    metadata = (
        string("general.architecture", "llama"),
        u32("llama.block_count", 1),
        u32("llama.context_length", _N_CTX),
        u32("llama.embedding_length", _N_EMBD),
        u32("llama.feed_forward_length", _N_EMBD),
        u32("llama.attention.head_count", 1),
        f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        *vocabulary,
    )
    tensors = _tensors(n_tokens)
    plan = Plan("F16", metadata, tensors, len(encode_plan_header(metadata, tensors)), 0)
    last = tensors[-1]
    plan = Plan("F16", metadata, tensors, plan.data_start, plan.data_start + padded(last.offset + last.n_bytes, 32))
    with GgufWriter(path, plan) as out:
        for tensor in tensors:
            out.begin(tensor)
            out.write(bytes(tensor.n_bytes))
            out.end()
        out.commit()


def _tensors(n_tokens: int) -> tuple[PlannedTensor, ...]:
    square = (_N_EMBD, _N_EMBD)
    shapes = {
        "token_embd.weight": (n_tokens, _N_EMBD),
        "output_norm.weight": (_N_EMBD,),
        "blk.0.attn_norm.weight": (_N_EMBD,),
        "blk.0.ffn_norm.weight": (_N_EMBD,),
        **{f"blk.0.attn_{part}.weight": square for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}.weight": square for part in ("gate", "up", "down")},
    }
    made: list[PlannedTensor] = []
    offset = 0
    for name, shape in shapes.items():
        kind = "F16" if len(shape) == 2 else "F32"
        n_bytes = tensor_bytes(kind, shape)
        made.append(PlannedTensor(name, shape, kind, n_bytes, offset))
        offset = padded(offset + n_bytes, 32)
    return tuple(made)
