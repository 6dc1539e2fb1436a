"""SentencePiece models: the reader against the library, bad files, and tokenizer.json without tokenizer.model."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.tokenizer import read_tokenizer
from pipeline.tokenizer.sentencepiece_model import read_model
from pipeline.tokenizer.vocabulary import TokenType


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _piece(text: str, score: float = 0.0, kind: int = 1) -> bytes:
    return _field(1, _field(1, text.encode()) + _field(2, score) + _field(3, kind))


BYTES = b"".join(_piece(f"<0x{value:02X}>", kind=6) for value in range(256))
TRAINER = _field(3, 2) + _field(43, -1)
NORMALIZER = _field(3, 1) + _field(4, 0) + _field(5, 1)


def _model(
    pieces: bytes = _piece("<unk>", kind=2) + _piece("<s>", kind=3) + _piece("</s>", kind=3) + BYTES,
    trainer: bytes = TRAINER,
    normalizer: bytes = NORMALIZER,
) -> bytes:
    return pieces + _field(2, trainer) + _field(3, normalizer)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes as tokenizer.model and return its path."""

    def call(data: bytes) -> Path:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(data)
        return path

    return call


def test_the_reader_equals_the_library(fixtures: Path) -> None:
    """Pieces, scores, types and special ids are those that the sentencepiece library reads."""
    path = fixtures / "arch" / "llama2" / "tokenizer.model"
    model = read_model(path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    n = library.get_piece_size()
    assert [piece.text for piece in model.pieces] == [library.id_to_piece(i) for i in range(n)]
    assert [piece.score for piece in model.pieces] == [library.get_score(i) for i in range(n)]
    for token_id, piece in enumerate(model.pieces):
        assert (piece.type is TokenType.BYTE) == library.is_byte(token_id)
        assert (piece.type is TokenType.CONTROL) == library.is_control(token_id)
        assert (piece.type is TokenType.UNKNOWN) == library.is_unknown(token_id)
    assert model.ids == {"unk": library.unk_id(), "bos": library.bos_id(), "eos": library.eos_id()}


def test_tokenizer_model_alone_is_enough(write: Callable[[bytes], Path]) -> None:
    """Without any JSON the special ids are the model's own, BOS is added, and the text gets its space."""
    tokenizer = read_tokenizer(write(_model()).parent, {"vocab_size": 260})
    keys = {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in tokenizer.metadata}
    assert (keys["model"], keys["pre"], tokenizer.kind) == ("llama", "default", "SentencePiece BPE")
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["unknown_token_id"]) == (1, 2, 0)
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (True, False)
    assert (keys["tokens"][259], keys["token_type"][259], keys["scores"][259]) == ("[PAD259]", 5, -10000.0)
    assert "add_space_prefix" not in keys  # llama.cpp's default


def test_no_space_prefix_is_said(write: Callable[[bytes], Path]) -> None:
    """llama.cpp puts a space before the text unless told otherwise."""
    tokenizer = read_tokenizer(write(_model(normalizer=NORMALIZER + _field(3, 0))).parent, {})
    assert [kv.value for kv in tokenizer.metadata if kv.key.endswith("add_space_prefix")] == [False]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (_model(trainer=_field(3, 3)), "word"),
        (_model(trainer=_field(3, 4)), "char"),
        (_model(trainer=_field(3, 77)), "unknown"),
        (_model(trainer=TRAINER + _field(24, 1)), "treat_whitespace_as_suffix"),
        (_model(normalizer=NORMALIZER + _field(2, b"map")), "precompiled_charsmap"),
        (_model(normalizer=_field(3, 1)), "remove_extra_whitespaces"),
        (_model(normalizer=NORMALIZER + _field(5, 0)), "escape_whitespaces"),
        (_model(pieces=_piece("<unk>", kind=2) + _piece("a")), "byte fallback"),
    ],
)
def test_what_llama_cpp_does_not_follow_is_refused(write: Callable[[bytes], Path], data: bytes, what: str) -> None:
    """Character maps and blanks of another kind have no place in GGUF's llama tokenizer."""
    with pytest.raises(UnsupportedError, match=what):
        read_model(write(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"IQ== 0\nIg== 1\n",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a",
        b"\x80" * 20,
        b"\x0b",
        b"\x00\x00",
        _model(pieces=_field(1, _field(2, 0.0))),
        _model(pieces=_field(1, _field(1, b"\xff"))),
        _model(pieces=_piece("a", kind=9) + BYTES),
        _model(pieces=_piece("a", float("nan")) + BYTES),
        _model(pieces=_piece("a", kind=6) + BYTES),
        _model(pieces=_field(1, _field(1, b"a") + _field(2, 1)) + _field(1, b"\x15\x00")),
        _model(pieces=_field(1, 5)),
    ],
)
def test_bad_files_are_format_errors(write: Callable[[bytes], Path], data: bytes) -> None:
    """Cut off, no protobuf, text that is not UTF-8, scores that are no numbers."""
    with pytest.raises(FormatError):
        read_model(write(data))


def test_two_pieces_of_one_text_are_refused(write: Callable[[bytes], Path]) -> None:
    """llama.cpp stops the process at a repeated text."""
    with pytest.raises(FormatError, match="same text"):
        read_tokenizer(write(_model(pieces=_piece("a") + _piece("a") + BYTES)).parent, {})


@given(position=st.integers(0, 6000), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_never_escapes(
    fixtures: Path, tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: bool
) -> None:
    """Whatever byte is changed, the answer is a model or an error of ours."""
    data = bytearray((fixtures / "arch" / "llama2" / "tokenizer.model").read_bytes())
    data[position] = value
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    path.write_bytes(data[:position] if cut else data)
    with contextlib.suppress(InputError):
        assert read_model(path).pieces


def test_added_tokens_beyond_the_embedding_are_left_out(fixtures: Path, tmp_path: Path) -> None:
    """A token without a row cannot be used; it is dropped with a note, while pieces without a row are an error."""
    shutil.copy(fixtures / "arch" / "llama2" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<image>": 448}', "utf-8")
    tokenizer = read_tokenizer(tmp_path, {"vocab_size": 448})
    assert tokenizer.n_tokens == 448
    assert "<image> (448)" in tokenizer.notes[0]
    assert read_tokenizer(tmp_path, {}).n_tokens == 449
    with pytest.raises(FormatError, match="more tokens"):
        read_tokenizer(tmp_path, {"vocab_size": 447})


@pytest.fixture
def json_only(fixtures: Path, tmp_path: Path) -> Callable[..., Any]:
    """Read llama2's tokenizer.json alone, with changes to its top level."""

    def call(model_type: str = "llama", **changes: Any) -> Any:
        document = json.loads((fixtures / "arch" / "llama2" / "tokenizer.json").read_text("utf-8"))
        document.update(changes)
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
        return read_tokenizer(tmp_path, {"model_type": model_type})

    return call


def test_scores_follow_the_merges(json_only: Callable[..., Any]) -> None:
    """Without tokenizer.model a piece scores minus the position of its first merge, others less than all."""
    keys = {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in json_only().metadata}
    scores = dict(zip(keys["tokens"], keys["scores"], strict=True))
    made = sorted((score for score in scores.values()), reverse=True)
    assert made[0] == 0.0
    assert scores["<s>"] == min(made)
    assert (keys["model"], keys["token_type"][0], keys["token_type"][1]) == ("llama", 2, 3)


def test_gemma4_keeps_its_merges(json_only: Callable[..., Any]) -> None:
    """Gemma 4's tokenizer model in llama.cpp wants merges and no pre-tokenizer's name."""
    tokenizer = json_only("gemma4_text", normalizer=None, pre_tokenizer=_metaspace("never"))
    keys = {kv.key.removeprefix("tokenizer.ggml."): kv.value for kv in tokenizer.metadata}
    assert (keys["model"], "pre" in keys, tokenizer.pre) == ("gemma4", False, "gemma4")
    assert keys["merges"]
    assert keys["add_space_prefix"] is False


def _metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}


@pytest.mark.parametrize(("scheme", "said"), [("always", []), ("first", []), ("never", [False])])
def test_metaspace_says_the_space_prefix(json_only: Callable[..., Any], scheme: str, said: list[bool]) -> None:
    """The new spelling of the same thing: a Metaspace that does not split."""
    tokenizer = json_only(normalizer=None, pre_tokenizer=_metaspace(scheme))
    assert [kv.value for kv in tokenizer.metadata if kv.key.endswith("add_space_prefix")] == said


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": _metaspace("always", split=True)},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}},
    ],
)  # fmt: skip
def test_other_steps_are_refused(json_only: Callable[..., Any], changes: dict[str, Any]) -> None:
    """What llama.cpp's SentencePiece does not do to text is refused."""
    with pytest.raises(UnsupportedError):
        json_only(**changes)
