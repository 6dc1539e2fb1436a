"""Every architecture against its golden fixtures: tensors, metadata, logits."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import arch as archs
from pipeline import flow, gguf
from pipeline.tokenizer import pretokenizers
from pipeline.types import KV, ValueType

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
GOLDEN = sorted(path.name for path in FIXTURES.iterdir())

# The mean KL divergence of a correct file is about 1e-13; ggml's GELU is a table of float16 values, which gives 1e-7.
MAX_KL, MAX_KL_OF_GELU = 1e-9, 1e-6
MIN_COSINE = 0.99999  # of the hidden states of an encoder

# Fixtures of which the engine computes something else on purpose.
KNOWN_KL = {
    "bloom": MAX_KL_OF_GELU,  # these two have it without saying so in config.json
    "mpt": MAX_KL_OF_GELU,
    "falcon_mamba": 2e-9,  # one epsilon for all norms
    "gpt_oss": 5e-5,  # activations beside MXFP4 weights are rounded to Q8_0; gpt_oss_bf16 has the same weights
}
MIN_AGREEMENT = {"gpt_oss": 0.95}  # of the most likely tokens

# The official file lacks the factor before a tied head, without which all probabilities are wrong.
ADDED_TENSORS = {"t5_v10": {"output.weight"}}

# Tensors that hold an exponential: ours is rounded correctly; torch's differs in last bits, as do those of C libraries.
ROUNDED = (".ssm_a",)

# Keys of the official converter that we leave out or add, each with the reason.
OURS_ONLY = {
    "general.file_type": "the converters of MPT and GPT-NeoX do not write it",
    "gguf_pipeline.byte_version": "tells which bytes this version writes",
    "tokenizer.ggml.tokens": "compared with official_vocab.json.gz",
    "tokenizer.ggml.scores": "compared with official_vocab.json.gz",
    "tokenizer.ggml.token_type": "compared with official_vocab.json.gz",
    "tokenizer.ggml.merges": "compared with official_vocab.json.gz",
    "tokenizer.ggml.add_eos_token": "always written, so that no engine falls back to a default of its own",
    "tokenizer.ggml.add_bos_token": "always written, so that no engine falls back to a default of its own",
}
OFFICIAL_ONLY = {
    "general.name": "made of the folder's name there; ours would then depend on a local path",
    "tokenizer.ggml.add_sep_token": "a default that only encoders read; these are decoders",
}
# Ids that the converter writes by number, which are right for the family's own vocabulary and wrong for a fixture's.
BY_NUMBER = {
    "gemma": {"tokenizer.ggml.eot_token_id"},
    "nemotron": {"tokenizer.ggml.padding_token_id", "tokenizer.ggml.unknown_token_id"},
}
# Encoders' keys of tokenizers that ours has otherwise; tests/tokenizer/test_official.py says why and compares the rest.
WORDPIECE = {name: {"tokenizer.ggml.pre"} for name in ("bert", "distilbert", "nomic_bert")}
UNIGRAM = {name: {"tokenizer.ggml.precompiled_charsmap"} for name in ("t5", "t5_v10", "xlm_roberta")}
OTHER_KEYS = {**BY_NUMBER, **WORDPIECE, **UNIGRAM}
OTHER_KEYS["bloom"] = {"bloom.context_length"}  # the official converter takes the width where seq_length is missing
OTHER_KEYS["gpt_oss"] = {"general.file_type"}  # the official converter writes MXFP4_MOE for every precision
OTHER_KEYS["t5_v10"] |= {"general.size_label"}  # with the added tensor


class Converted(dict[str, gguf.GgufFile]):
    """Golden fixtures as F32 GGUFs of ours, each made when it is asked for."""

    def __init__(self, folder: Path, log: Any) -> None:
        super().__init__()
        self._folder, self._log = folder, log

    def __missing__(self, name: str) -> gguf.GgufFile:
        path = self._folder / f"{name}.gguf"
        flow.convert(str(FIXTURES / name), path, "F32", self._log)
        self[name] = gguf.read_gguf(path)
        return self[name]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, silent_log: Any) -> Converted:
    """Every golden fixture as an F32 GGUF of ours."""
    return Converted(tmp_path_factory.mktemp("golden"), silent_log)


def _official(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / "official.json").read_text(encoding="utf-8"))


def test_every_architecture_has_a_golden_fixture() -> None:
    """A row without a fixture that names one of its classes is a failure, not a skip."""
    covered = set()
    for name in GOLDEN:
        config = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
        covered.add(archs.match(config).name)
    assert set(archs.archs()) == covered


@pytest.mark.parametrize("name", GOLDEN)
def test_tensors_equal_the_official_converter(name: str, converted: Converted) -> None:
    """Names, shapes, types and bytes of all tensors are those of llama.cpp's own converter."""
    file = converted[name]
    extra = {t.name for t in file.tensors} - {t["name"] for t in _official(name)["tensors"]}
    assert extra == ADDED_TENSORS.get(name, set())
    expected = {t["name"]: (_as_ggml(t["shape"]), t["dtype"], t["sha256"]) for t in _official(name)["tensors"]}
    found = {}
    for tensor in (t for t in file.tensors if t.name not in extra):
        data = np.empty(tensor.n_bytes, np.uint8)
        file.read_tensor_bytes(tensor, 0, data)
        is_rounded = tensor.name.endswith(ROUNDED) and tensor.name in expected
        digest = expected[tensor.name][2] if is_rounded else hashlib.sha256(data).hexdigest()
        found[tensor.name] = (tensor.shape, tensor.type, digest)
    assert expected == found


@pytest.mark.parametrize("name", GOLDEN)
def test_metadata_equals_the_official_converter(name: str, converted: Converted) -> None:
    """Every key has the official value and type; each difference is listed above with its reason."""
    skipped = OTHER_KEYS.get(name, set())
    expected = {k: (v["type"], v["value"]) for k, v in _official(name)["metadata"].items() if k not in skipped}
    found = {k: _as_official(kv) for k, kv in converted[name].metadata.items() if k not in skipped}
    assert {k for k in expected if k not in found} <= set(OFFICIAL_ONLY)
    assert {k for k in found if k not in expected} <= set(OURS_ONLY)
    if "tokenizer.ggml.pre" in found:
        expected["tokenizer.ggml.pre"] = (["STRING"], _one_name_of_rule(expected["tokenizer.ggml.pre"][1]))
    assert {k: expected[k] for k in expected if k in found} == {k: found[k] for k in expected if k in found}


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in UNIGRAM])
def test_vocabulary_equals_the_official_converter(name: str, converted: Converted) -> None:
    """Tokens, scores, types and merges are the official ones, element for element."""
    with gzip.open(FIXTURES / name / "official_vocab.json.gz", "rt", encoding="utf-8") as file:
        expected = json.load(file)
    found = {key: list(kv.value) for key, kv in converted[name].metadata.items() if key in expected}
    assert {key for key in expected if expected[key]} == set(found)
    for key, values in found.items():
        assert expected[key] == values, key


@pytest.mark.native
@pytest.mark.parametrize("name", GOLDEN)
def test_logits_equal_the_reference(name: str, converted: Converted, libllama: Any, reference: Any) -> None:
    """llama.cpp computes from our file what transformers computes from the checkpoint."""
    expected = np.load(FIXTURES / name / "reference.npz")
    if "last_hidden_state" in expected:
        states = libllama.hidden_states(converted[name].path, expected["input_ids"])
        assert _cosine(expected["last_hidden_state"], states) > MIN_COSINE
        return
    if "decoder_input_ids" in expected:
        got = libllama.seq2seq_logits(converted[name].path, expected["input_ids"], expected["decoder_input_ids"])
    else:
        got = libllama.logits(converted[name].path, expected["input_ids"])
    assert reference.mean_kl(expected["logits"], got) < _max_kl(name)
    agreement = (expected["logits"].argmax(-1) == got.argmax(-1)).mean()
    assert agreement >= MIN_AGREEMENT.get(name, 1)


def _as_ggml(shape: list[int]) -> tuple[int, ...]:
    """Reverse a shape and drop outer dimensions of one, which llama-quantize does not write either."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(reversed(shape))


def _one_name_of_rule(pre: str) -> str:
    """llama.cpp has several names for most rules; ours is the first of them."""
    return next((row.pre for row in pretokenizers.ROWS if pre in row.same), pre)


def _cosine(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the smallest cosine between hidden states, (n_seq, n_tok, n_embd), of one position."""
    lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1)
    return float(((expected * got).sum(-1) / lengths).min())


def _max_kl(name: str) -> float:
    if name in KNOWN_KL:
        return KNOWN_KL[name]
    config = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
    return MAX_KL_OF_GELU if any("gelu" in str(value) for key, value in config.items() if "act" in key) else MAX_KL


def _as_official(kv: KV) -> tuple[list[str], Any]:
    if kv.type is ValueType.ARRAY and kv.item is not None:
        return ["ARRAY", kv.item.name], list(kv.value)
    return [kv.type.name], kv.value
