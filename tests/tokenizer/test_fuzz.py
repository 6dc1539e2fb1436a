"""Evil tokenizer files: the answer is a tokenizer or an error of ours, soon and in little memory."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.tokenizer import read_tokenizer

FOLDER = Path(__file__).parent.parent / "fixtures" / "tokenizers"

# Values that a JSON file may have where something else should be.
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 70, 0.5, 1e300, "", "x", "\ud800", "a\0b", "\u2581", [], {}, [[]], [None], [[1, 2]],
    ["a", -1.0], {"type": "x"}, {"type": "Sequence"}, {"type": ["x"]}, {"content": 5}, {"": ""},
)  # fmt: skip


def _small(name: str) -> dict[str, Any]:
    """Give a fixture's tokenizer.json with a vocabulary that is quick to walk."""
    document: dict[str, Any] = json.loads((FOLDER / name / "tokenizer.json").read_text("utf-8"))
    return document


def _damage(data: st.DataObject, document: Any) -> None:
    """Put an odd value somewhere, at any depth, or take something away."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)[:40]))
        child = node[key]
        if not isinstance(child, dict | list) or not child or data.draw(st.integers(0, 3)) == 0:
            break
        node = child
    if data.draw(st.integers(0, 5)) == 0:
        del node[key]
    else:
        node[key] = copy.deepcopy(data.draw(st.sampled_from(_ODD)))


def _read(folder: Path, config: dict[str, Any]) -> None:
    with contextlib.suppress(PipelineError):
        assert read_tokenizer(folder, config).n_tokens > 0


@pytest.mark.parametrize("name", ["llama3", "gemma4", "t5_v10", "xlm_roberta", "bert", "modernbert"])
@given(data=st.data())
def test_damaged_json_never_escapes(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    """Odd values in tokenizer.json and tokenizer_config.json, with a vocabulary size that may not fit."""
    folder = tmp_path_factory.mktemp("damaged")
    document = _small(name)
    settings = json.loads((FOLDER / name / "tokenizer_config.json").read_text("utf-8"))
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from([document, document, settings]))
        if target:
            _damage(data, target)
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    _read(folder, {"vocab_size": data.draw(st.sampled_from([None, 1, 400, 600, "x"])), "model_type": "x"})


@pytest.mark.parametrize(
    ("name", "file"),
    [("llama2", "tokenizer.model"), ("t5_v10", "spiece.model"), ("xlm_roberta", "sentencepiece.bpe.model")],
)
@given(data=st.data())
def test_damaged_models_never_escape(
    tmp_path_factory: pytest.TempPathFactory, name: str, file: str, data: st.DataObject
) -> None:
    """Bytes changed, cut out and put in, anywhere in a model file."""
    content = bytearray((FOLDER / name / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        n = data.draw(st.integers(0, 3))
        content[at : at + n] = data.draw(st.binary(max_size=4))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / file).write_bytes(content)
    _read(folder, {})


@given(st.binary(max_size=200), st.sampled_from(["tokenizer.model", "vocab.txt", "tekken.json", "qwen.tiktoken"]))
def test_noise_never_escapes(tmp_path_factory: pytest.TempPathFactory, content: bytes, file: str) -> None:
    """Any bytes under any name."""
    folder = tmp_path_factory.mktemp("noise")
    (folder / file).write_bytes(content)
    _read(folder, {})


@given(st.lists(st.text(max_size=6), max_size=12), st.booleans())
def test_any_vocab_txt_never_escapes(tmp_path_factory: pytest.TempPathFactory, lines: list[str], whole: bool) -> None:
    """Any lines, with or without the special tokens."""
    folder = tmp_path_factory.mktemp("lines")
    special = ["[UNK]", "[CLS]", "[SEP]"] if whole else []
    text = "\n".join([*special, *lines]).encode("utf-8", "surrogatepass")
    (folder / "vocab.txt").write_bytes(text)
    _read(folder, {})


@given(data=st.data())
def test_damaged_tekken_never_escapes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Odd values in tekken.json."""
    entries = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    document = {
        "config": {"pattern": r"\p{L}+|.", "default_vocab_size": 260, "default_num_special_tokens": 4},
        "vocab": entries,
        "special_tokens": [{"rank": 1, "token_str": "<s>", "is_control": True}],
    }
    _damage(data, document)
    folder = tmp_path_factory.mktemp("tekken")
    (folder / "tekken.json").write_text(json.dumps(document), "utf-8")
    _read(folder, {})


_BIG = {
    # a vocabulary of one endless word, one merge a letter
    "tokenizer.json": """
        word = "a" * 3000
        vocab = {word[:n]: n - 1 for n in range(1, 3001)}
        merges = [[word[:n], "a"] for n in range(1, 3000)]
        model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True}
        step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        text = json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": step, "model": model})
    """,
    # pieces whose every cut must be tried
    "tekken.json": """
        pieces = [bytes([i]) for i in range(256)] + [b"a" * 1024 + i.to_bytes(2, "big") for i in range(9000)]
        vocab = [{"rank": i, "token_bytes": base64.b64encode(p).decode()} for i, p in enumerate(pieces)]
        config = {"pattern": ".", "default_vocab_size": len(vocab) + 1, "default_num_special_tokens": 1}
        text = json.dumps({"config": config, "vocab": vocab})
    """,
    # as many empty fields as fit
    "tokenizer.model": r"""
        text = b"\x0a\x00" * (15 << 20)
    """,
    # one field of a message, again and again, each with another number
    "spiece.model": r"""
        def varint(n):
            out = b""
            while n > 127:
                out, n = out + bytes([n & 127 | 128]), n >> 7
            return out + bytes([n])
        body = b"".join(varint(n << 3) + b"\x01" for n in range(100, 2_000_000))
        text = b"\x12" + varint(len(body)) + body
    """,
    "vocab.txt": r"""
        text = "[UNK]\n[CLS]\n[SEP]\n" + "\n" * (3 << 20)
    """,
}


@pytest.mark.parametrize("file", _BIG)
def test_big_files_take_bounded_time_and_memory(tmp_path: Path, file: str) -> None:
    """Files made to cost much end within a minute and 1.5 GB, as a tokenizer or as an error of ours."""
    program = f"""
import base64, json, resource, sys
from pathlib import Path
from pipeline.errors import PipelineError
from pipeline.tokenizer import read_tokenizer
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
{textwrap.dedent(_BIG[file])}
path = Path(sys.argv[1]) / {file!r}
path.write_bytes(text if isinstance(text, bytes) else text.encode())
del text
try:
    read_tokenizer(path.parent, {{}})
except PipelineError as error:
    print(str(error)[:300])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert peak < 1_500_000, peak
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_far_id_does_not_fill_the_memory(tmp_path: Path) -> None:
    """Ids of added tokens are bounded before anything is made of them."""
    shutil.copy(FOLDER / "llama2" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<x>": 1999999999}', "utf-8")
    with pytest.raises(PipelineError, match="no token id"):
        read_tokenizer(tmp_path, {})
