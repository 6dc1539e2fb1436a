"""SentencePiece unigram: T5, XLM-RoBERTa, with and without tokenizer.json."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from pipeline.errors import FormatError, UnsupportedError
from pipeline.tokenizer import Tokenizer, read_tokenizer

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers"
MODELS = {"t5_v10": "spiece.model", "xlm_roberta": "sentencepiece.bpe.model"}
Ids = Callable[..., list[int]]

# Blanks that only WhitespaceSplit knows (sentencepiece and llama.cpp do not), and U+2581 typed by the user.  Real
# character maps add decomposed text, which these small ones leave alone.
LIMITS = {"control", "nbsp_spaces", "sp_symbol"}


def _keys(tokenizer: Tokenizer) -> dict[str, Any]:
    return {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in tokenizer.metadata}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Copy a fixture's tokenizer.json with changes to its top level, and only the named files beside it."""

    def write(name: str, *files: str, **changes: Any) -> Path:
        document = json.loads((FOLDER / name / "tokenizer.json").read_text("utf-8"))
        document.update(changes)
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
        for file in files:
            shutil.copy(FOLDER / name / file, tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_character_map_is_the_official_one(name: str) -> None:
    """The bytes of the map have the length and digest of the official converter's."""
    document = json.loads((FOLDER / name / "expected.json").read_text("utf-8"))
    official = document["official"]["tokenizer.ggml.precompiled_charsmap"]["value"]
    ours = bytes(_keys(read_tokenizer(FOLDER / name, document["config"]))["precompiled_charsmap"])
    assert (len(ours), hashlib.sha256(ours).hexdigest()) == (official["len"], official["sha256"])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_model_file_alone_is_enough(tmp_path: Path, name: str) -> None:
    """Without tokenizer.json the same pieces, scores, types, flags and special ids come out of the model file."""
    whole = _keys(read_tokenizer(FOLDER / name, {}))
    shutil.copy(FOLDER / name / MODELS[name], tmp_path)
    alone = _keys(read_tokenizer(tmp_path, {}))
    n = len(alone["tokens"])
    assert n > 400
    assert alone["tokens"] == whole["tokens"][:n]
    assert alone["token_type"] == whole["token_type"][:n]
    at_most_last = n - 1  # the mask is an added token in tokenizer.json, which gives it no score of its own
    assert alone["scores"][:at_most_last] == whole["scores"][:at_most_last]
    rest = set(whole) - {"tokens", "scores", "token_type", "add_sep_token", "padding_token_id"}
    assert {key: alone.get(key) for key in rest} == {key: whole[key] for key in rest}


@pytest.mark.native
@pytest.mark.parametrize("name", sorted(MODELS))
def test_ids_equal_the_libraries(llama_ids: Ids, texts: dict[str, str], tmp_path: Path, name: str) -> None:
    """Ids from tokenizer.json alone equal those of tokenizers, but for the limits, and all those of sentencepiece."""
    shutil.copy(FOLDER / name / "tokenizer.json", tmp_path)
    metadata = read_tokenizer(tmp_path, {}).metadata
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    differing = {
        label
        for label, text in texts.items()
        if llama_ids(metadata, text, True) != reference.encode(text, add_special_tokens=False).ids
    }
    assert differing == LIMITS
    library = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / name / MODELS[name]))
    for text in texts.values():
        expected = library.encode(text)
        if name == "xlm_roberta":
            expected = [{0: 3, 1: 0, 2: 2}.get(i, i + 1) for i in expected]
        assert llama_ids(metadata, text, False) == expected


def test_a_renumbering_class_needs_tokenizer_json(tmp_path: Path) -> None:
    """CamemBERT, MBart and others number the pieces in their own ways: their model file alone is refused."""
    shutil.copy(FOLDER / "xlm_roberta" / MODELS["xlm_roberta"], tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CamembertTokenizer"}', "utf-8")
    with pytest.raises(UnsupportedError, match="CamembertTokenizer"):
        read_tokenizer(tmp_path, {})


def test_files_of_two_models_are_refused(changed: Callable[..., Path]) -> None:
    """A model file of other pieces than tokenizer.json's is stale."""
    folder = changed("t5_v10", "spiece.model")
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    document["model"]["vocab"][300][0] = "another piece"
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(FormatError, match="disagree"):
        read_tokenizer(folder, {})


_METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}


@pytest.mark.parametrize(
    ("changes", "prefix", "merges"),
    [
        ({"normalizer": None, "pre_tokenizer": _METASPACE}, True, False),
        ({"normalizer": None, "pre_tokenizer": {**_METASPACE, "prepend_scheme": "never"}}, False, False),
        (
            {
                "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
                "pre_tokenizer": _METASPACE,
            },
            True,
            True,
        ),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": False}}, False, True),
    ],
)
def test_blanks_are_treated_as_the_file_says(
    changed: Callable[..., Path], changes: dict[str, Any], prefix: bool, merges: bool
) -> None:
    """The space before the text and the merging of blanks are read from the steps, in old and new spelling."""
    keys = _keys(read_tokenizer(changed("t5_v10", **changes), {}))
    assert (keys["add_space_prefix"], keys["remove_extra_whitespaces"]) == (prefix, merges)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "-"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**_METASPACE, "replacement": "_"}},
    ],
)
def test_other_preparations_are_refused(changed: Callable[..., Path], changes: dict[str, Any]) -> None:
    """What llama.cpp does not do to text is refused."""
    with pytest.raises(UnsupportedError):
        read_tokenizer(changed("t5_v10", **changes), {})


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(unk_id=None),
        lambda model: model.update(unk_id=-1),
        lambda model: model.update(unk_id=10**6),
        lambda model: model.update(vocab=[]),
        lambda model: model.update(vocab={"a": 0}),
        lambda model: model["vocab"].append(["twice", -1.0]) or model["vocab"].append(["twice", -2.0]),
        lambda model: model["vocab"].append(["x"]),
        lambda model: model["vocab"].append([5, -1.0]),
        lambda model: model["vocab"].append(["x", "1"]),
        lambda model: model["vocab"].append(["x", True]),
        lambda model: model["vocab"].append(["x", 1e300]),
        lambda model: model["vocab"].append(["x", 1 << 4000]),
    ],
)
def test_bad_vocabularies_are_format_errors(
    changed: Callable[..., Path], change: Callable[[dict[str, Any]], object]
) -> None:
    """Pieces are a list of texts with finite scores, each once, and one of them is the unknown one."""
    model = json.loads((FOLDER / "t5_v10" / "tokenizer.json").read_text("utf-8"))["model"]
    change(model)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        read_tokenizer(changed("t5_v10", model=model, added_tokens=[]), {})


def test_byte_fallback_is_said(changed: Callable[..., Path]) -> None:
    """Pieces for bytes have their type, and that llama.cpp does not use them is in the notes."""
    model = json.loads((FOLDER / "t5_v10" / "tokenizer.json").read_text("utf-8"))["model"]
    model["byte_fallback"] = True
    model["vocab"][200:456] = [[f"<0x{value:02X}>", 0.0] for value in range(256)]
    tokenizer = read_tokenizer(changed("t5_v10", model=model, added_tokens=[]), {})
    assert _keys(tokenizer)["token_type"][200:456] == (6,) * 256
    assert any("byte fallback" in note for note in tokenizer.notes)


def _charsmap(data: bytes) -> dict[str, Any]:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}}


def test_a_character_map_is_optional(changed: Callable[..., Path]) -> None:
    """An empty map is none."""
    assert "precompiled_charsmap" not in _keys(read_tokenizer(changed("t5_v10", **_charsmap(b"")), {}))
