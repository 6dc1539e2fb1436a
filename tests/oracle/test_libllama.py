"""The oracle itself: a GGUF made without any code of the package must give the logits that torch gave."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """Read all safetensors files of *folder* as float32, less the buffers that no model needs."""
    found = {}
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, row in json.loads(raw[8:start]).items():
            if name != "__metadata__" and "inv_freq" not in name:
                first, stop = row["data_offsets"]
                values = np.frombuffer(raw[start + first : start + stop], _DTYPES[row["dtype"]])
                found[name] = values.reshape(row["shape"]).astype(np.float32)
    return found


def _name(source: str) -> str:
    if source in _OUTER:
        return _OUTER[source]
    block, _, kind = source.removeprefix("model.layers.").partition(".")
    inner, _, suffix = kind.rpartition(".")
    return f"blk.{block}.{_INNER[inner]}.{suffix}"


def _interleaved(rows: np.ndarray, head_dim: int = 16) -> np.ndarray:
    """Turn the halves of each head's rows into pairs, as llama.cpp's rotary embedding for this family wants them."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _write(fixture: Path, path: Path) -> Path:
    """Write *fixture* as a float32 GGUF with the gguf package; metadata is what the fixture's own record says."""
    metadata = json.loads((fixture / "official.json").read_text())["metadata"]
    vocabulary = json.loads(gzip.decompress((fixture / "official_vocab.json.gz").read_bytes()))
    architecture = metadata["general.architecture"]["value"]
    writer = gguf.GGUFWriter(path, architecture)
    for key, row in metadata.items():
        if key != "general.architecture" and key not in vocabulary:
            writer.add_key_value(key, row["value"], gguf.GGUFValueType[row["type"][0]])
    for key, values in vocabulary.items():
        writer.add_array(key, values)
    for source, values in _weights(fixture).items():
        turn = architecture == "llama" and ("q_proj" in source or "k_proj" in source)
        writer.add_tensor(_name(source), np.ascontiguousarray(_interleaved(values) if turn else values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def libllama(oracle: Callable[[str], ModuleType], llama: Any) -> Iterator[Any]:
    """llama.cpp as a library."""
    library = oracle("libllama").LibLlama(llama.library("llama"))
    yield library
    library.close()


@pytest.fixture(scope="module", params=["llama2", "qwen2"])
def model(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A fixture folder, and the GGUF made of it."""
    fixture = repository / "tests" / "fixtures" / "arch" / request.param
    return fixture, _write(fixture, tmp_path_factory.mktemp("oracle") / f"{request.param}.gguf")


def test_the_divergence_of_equal_logits_is_zero(oracle: Callable[[str], ModuleType]) -> None:
    """KL is 0 for equal distributions, also when the logits are shifted, and known for two coins."""
    mean_kl = oracle("libllama").mean_kl
    logits = np.array([[[1.0, 2.0, -3.0]]], np.float32)
    assert mean_kl(logits, logits) == 0
    assert abs(mean_kl(logits, logits + 5)) < 1e-12
    fair, loaded = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert mean_kl(fair, loaded) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


@pytest.mark.native
def test_logits_are_those_of_torch(
    libllama: Any, oracle: Callable[[str], ModuleType], model: tuple[Path, Path]
) -> None:
    """llama.cpp and torch agree on every position: divergence below 1e-9, the same best token."""
    reference = np.load(model[0] / "reference.npz")
    got = libllama.logits(model[1], reference["input_ids"])
    assert got.dtype == np.float32
    assert oracle("libllama").mean_kl(reference["logits"], got) < 1e-9
    assert np.array_equal(got.argmax(-1), reference["logits"].argmax(-1))


@pytest.mark.native
def test_a_wrong_weight_shows(
    libllama: Any, oracle: Callable[[str], ModuleType], model: tuple[Path, Path], tmp_path: Path
) -> None:
    """The oracle can fail: one tensor with its rows in another order is far outside the tolerance."""
    reference = np.load(model[0] / "reference.npz")
    damaged = bytearray(model[1].read_bytes())
    info = next(t for t in gguf.GGUFReader(model[1]).tensors if t.name == "blk.0.attn_q.weight")
    rows = np.frombuffer(damaged, np.float32, 64 * 64, int(info.data_offset)).reshape(64, 64)
    damaged[info.data_offset : info.data_offset + rows.nbytes] = np.roll(rows, 1, axis=0).tobytes()
    (tmp_path / "damaged.gguf").write_bytes(damaged)
    got = libllama.logits(tmp_path / "damaged.gguf", reference["input_ids"])
    assert oracle("libllama").mean_kl(reference["logits"], got) > 1e-6


@pytest.mark.native
def test_results_repeat_exactly(libllama: Any, model: tuple[Path, Path]) -> None:
    """Two runs give the same bits, and a prompt does not depend on the one before it."""
    ids = np.load(model[0] / "reference.npz")["input_ids"]
    both = libllama.logits(model[1], ids)
    assert np.array_equal(both[1:], libllama.logits(model[1], ids[1:]))


@pytest.mark.native
def test_tokens_are_those_on_record(libllama: Any, model: tuple[Path, Path]) -> None:
    """Text becomes the ids that the fixture records, and ids become its words again."""
    for case in json.loads((model[0] / "tokenization.json").read_text())["strings"]:
        plain = libllama.tokenize(model[1], case["text"], False, True)
        assert plain == case["llama_cpp"]
        assert libllama.tokenize(model[1], case["text"], True, True) == case["llama_cpp_special"]
        text = libllama.detokenize(model[1], plain, special=True).decode()
        assert text.split() == case["text"].split() or "</s>" in text  # SentencePiece adds spaces behind specials


@pytest.mark.native
def test_a_bad_file_is_an_error_with_the_log(libllama: Any, tmp_path: Path) -> None:
    """A file that llama.cpp cannot load is an exception that says why."""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(RuntimeError, match="version"):
        libllama.logits(tmp_path / "bad.gguf", np.zeros((1, 2), np.int32))
