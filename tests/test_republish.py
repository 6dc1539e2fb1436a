"""A GGUF as the model: what its header says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import gguf, quant
from pipeline.errors import FormatError, UnsupportedError
from pipeline.gguf import FILE_TYPES, TensorEntry, encode_header
from pipeline.plan import make_plan
from pipeline.republish import file_type, read_gguf_model
from pipeline.types import KV, ValueType, array, f32, string, u32

Write = Callable[..., Path]

VOCABULARY = (
    string("tokenizer.ggml.model", "gpt2"),
    string("tokenizer.ggml.pre", "qwen2"),
    array("tokenizer.ggml.tokens", ValueType.STRING, ["<s>", "</s>", "<|im_end|>", "a"]),
    u32("tokenizer.ggml.bos_token_id", 0),
    u32("tokenizer.ggml.eos_token_id", 1),
    u32("tokenizer.ggml.eot_token_id", 2),
    string("tokenizer.chat_template", "{{ messages }}"),
)
MODEL = (string("general.architecture", "llama"), u32("llama.block_count", 1))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GGUF of zeros: one tensor of the given type, the given keys behind those of a model."""

    def write_file(*keys: KV, kind: str = "F16", drop: str = "", alignment: int = 32) -> Path:
        kept = [kv for kv in (*MODEL, *VOCABULARY) if not drop or not kv.key.startswith(drop)]
        taken = {kv.key for kv in keys}
        metadata = [*(kv for kv in kept if kv.key not in taken), *keys]
        shape = (2, 256)
        entries = [TensorEntry("blk.0.attn_q.weight", shape, gguf.tensor_type(kind).id, 0)]
        path = tmp_path / "m.gguf"
        data = bytes(gguf.padded(gguf.tensor_bytes(kind, shape), alignment))
        path.write_bytes(encode_header(metadata, entries, alignment) + data)
        return path

    return write_file


@pytest.mark.parametrize(
    ("kind", "stated", "expected"),
    [
        ("Q4_K", 15, "Q4_K_M"), ("Q4_K", None, "Q4_K"), ("F16", 1, "F16"), ("BF16", None, "BF16"), ("Q8_0", 1, "Q8_0"),
        ("IQ4_XS", 30, "IQ4_XS"), ("Q4_K", 1024, "Q4_K"), ("F32", 999, "F32"),
    ],
)  # fmt: skip
def test_type_of_the_file(write: Write, kind: str, stated: int | None, expected: str) -> None:
    """The header's word is taken where it can be right, else the type of most weights."""
    keys = () if stated is None else (u32("general.file_type", stated),)
    file = gguf.read_gguf(write(*keys, kind=kind))
    assert file_type([file]) == expected


def test_recipes_are_called_like_file_types() -> None:
    """Our recipes' numbers are those of the table."""
    assert {recipe.file_type: name for name, recipe in quant.recipes().items()}.items() <= FILE_TYPES.items()


def test_facts(write: Write) -> None:
    """Template, special texts, sampling and licence are read back from their keys."""
    model = read_gguf_model(
        write(
            f32("general.sampling.temp", 0.6),
            KV("general.sampling.top_k", ValueType.INT32, 40),
            f32("general.sampling.penalty_repeat", 1.1),
            string("general.license", "apache-2.0"),
        ),
        requantize=False,
    )
    assert model.generation_config == {"temperature": 0.6, "top_k": 40, "repetition_penalty": 1.1}
    assert model.licenses == ("apache-2.0",)
    tokenizer = model.tokenizer
    assert (tokenizer.bos, tokenizer.eos, tokenizer.eos_texts) == ("<s>", "</s>", ("</s>", "<|im_end|>"))
    assert (tokenizer.chat_template, tokenizer.pre, tokenizer.n_tokens) == ("{{ messages }}", "qwen2", 4)


def test_ids_outside_the_vocabulary_count_as_none(write: Write) -> None:
    """As in llama.cpp, an id that no token has is no special token."""
    tokenizer = read_gguf_model(write(u32("tokenizer.ggml.eos_token_id", 99)), requantize=False).tokenizer
    assert tokenizer.eos is None
    assert tokenizer.eos_texts == ("<|im_end|>",)


@pytest.mark.parametrize(
    ("keys", "drop", "error", "message"),
    [
        ((string("general.type", "adapter"),), "", UnsupportedError, "no whole model"),
        ((), "tokenizer", FormatError, "no vocabulary"),
        ((string("tokenizer.ggml.eos_token_id", "1"),), "", FormatError, "eos_token_id has another type"),
        ((u32("tokenizer.chat_template", 1),), "", FormatError, "chat_template has another type"),
        ((), "llama.block_count", FormatError, r"lacks llama\.block_count"),
        (
            (KV("split.count", ValueType.UINT16, 2), KV("split.no", ValueType.UINT16, 0)),
            "", FormatError, "does not lead to the others",
        ),
    ],
)  # fmt: skip
def test_what_is_no_model(write: Write, keys: tuple[KV, ...], drop: str, error: type[Exception], message: str) -> None:
    """Adapters, parts of models and headers that lack something are refused, with the way out."""
    with pytest.raises(error, match=message):
        read_gguf_model(write(*keys, drop=drop), requantize=False)


def test_another_alignment(write: Write) -> None:
    """A file of another alignment is planned as it is; to quantize it is refused."""
    model = read_gguf_model(write(u32("general.alignment", 64), alignment=64), requantize=False)
    as_it_is = make_plan(model.blueprint, "F16")
    assert as_it_is.verbatim is not None
    assert as_it_is.file_bytes == as_it_is.verbatim.stat().st_size
    assert as_it_is.data_start % 64 == 0
    with pytest.raises(UnsupportedError, match="alignment"):
        make_plan(model.blueprint, "Q8_0")
