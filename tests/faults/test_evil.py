"""Files that are not what they claim: an error of ours or a plan, soon, in little memory; nothing else, ever."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import decide, flow
from pipeline.checkpoint import open_checkpoint
from pipeline.errors import PipelineError
from pipeline.job import Job
from pipeline.machine import resident_bytes
from pipeline.plan import make_plan
from pipeline.provenance import files_of, weights_of

pytestmark = pytest.mark.timeout(120)

FIXTURES = Path(__file__).parent.parent / "fixtures"
ARCH = FIXTURES / "arch"
# Checkpoints that are others without some files: older forms of tokenizers, and of weights.
VARIANTS = {
    "llama2 tokenizer.model": ("llama2", ["tokenizer.json"]),
    "gpt2 vocab.json": ("gpt2", ["tokenizer.json"]),
    "bert vocab.txt": ("bert", ["tokenizer.json"]),
    "xlm_roberta sentencepiece.bpe.model": ("xlm_roberta", ["tokenizer.json"]),
    "t5_v10 spiece.model": ("t5_v10", ["tokenizer.json"]),
    "bloom pytorch_model.bin": ("bloom", ["model.safetensors"]),
}
MODELS = (*sorted(path.name for path in ARCH.iterdir()), *VARIANTS)
REFERENCES = {"official.json", "official_vocab.json.gz", "reference.npz", "tokenization.json"}
_STATM = Path("/proc/self/statm")
MEMORY = 1 << 30  # bytes more than before


def _copy(name: str, folder: Path) -> Path:
    """Copy the checkpoint *name* to *folder*."""
    base, without = VARIANTS.get(name, (name, []))
    shutil.copytree(ARCH / base, folder)
    for file in without:
        (folder / file).unlink()
    if "bin" in name:
        shutil.copytree(FIXTURES / "checkpoints" / "bloom_bin", folder, dirs_exist_ok=True)
    return folder


def _files(folder: Path) -> list[Path]:
    """List the files of a checkpoint, relative to its folder, without what the tests compare with."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name not in REFERENCES)


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Whoever takes much more memory than there was at the start gets a MemoryError, which is no error of ours."""
    if not _STATM.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(_STATM.read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


Read = Callable[..., bool]


@pytest.fixture
def read(silent_log: Any) -> Read:
    """Read a model as `publish` does before it touches a weight; tell whether it was taken."""

    def read(model: Path, adapter: Path | None = None) -> bool:
        with contextlib.suppress(PipelineError), flow.prepare(str(model), silent_log, adapter=adapter) as prepared:
            plan = make_plan(prepared.blueprint, "Q8_0")
            decide.modelfile_of(prepared, Job(str(model), ("Q8_0",)), silent_log)
            assert plan.file_bytes > plan.data_start
            assert files_of((model,) if model.is_dir() else (), weights_of(plan.tensors))
            return True
        return False

    return read


def _socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # its path may be too long for one
        made.bind(path.name)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2 << 30)


PLACES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": _socket,
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "/dev/null": lambda path: path.symlink_to("/dev/null"),
    "/proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "2 GiB of nothing": _sparse,
}
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "every byte": lambda _: bytes(range(256)) * 100,
    "half of it": lambda old: old[: len(old) // 2],
    "it twice": lambda old: old + old,
    "a byte order mark": lambda old: b"\xef\xbb\xbf" + old,
    "UTF-16": lambda old: old.decode("utf-8", "replace").encode("utf-16"),
    "NUL before it": lambda old: bytes(100) + old,
    "a key twice": lambda old: b'{"x": 1, "x": 2, ' + old.lstrip()[1:],
    "deep objects": lambda _: b'{"a":' * 200_000,
    "deep lists": lambda _: b"[" * 1_000_000,
    "a huge number": lambda _: b'{"a": 1' + b"0" * 1_000_000 + b"}",
    "many values": lambda _: b"[" + b"0," * 4_000_000 + b"0]",
    "a pointer of Git LFS": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}
FORMS = ("llama3", "llama2", "bert", *VARIANTS)
MORE_FILES = ("tokenizer.model", "generation_config.json", "LICENSE", "modules.json", "model.safetensors.index.json")


@pytest.mark.parametrize("name", FORMS)
def test_something_else_in_place_of_a_file(name: str, read: Read, tmp_path: Path, tally: Any) -> None:
    """Each file of a checkpoint in turn as what blocks, never ends, is not there, or is something else altogether."""
    folder = _copy(name, tmp_path / "m")
    assert read(folder)
    for file in sorted({*_files(folder), *map(Path, MORE_FILES)}):
        path = folder / file
        old = path.read_bytes() if path.exists() else None
        for put in PLACES.values():
            with tally("something else in place of a file"):
                path.unlink(missing_ok=True)
                put(path)
                try:
                    read(folder)
                finally:
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for change in CONTENTS.values():
            with tally("something else in place of a file"):
                path.write_bytes(change(old or b"{}"))
                read(folder)
        path.unlink()
        if old is not None:
            path.write_bytes(old)


@pytest.mark.parametrize("kind", ["a pipe", "/dev/zero", "a link to nothing"])
@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json", "LICENSE", "modules.json"]
)
def test_what_is_meant_to_count_is_not_passed_over(kind: str, file: str, read: Read, tmp_path: Path) -> None:
    """A file that may be missing, but is there and cannot be read, stops the work: without it the model is another."""
    folder = _copy("llama3", tmp_path / "m")
    (folder / file).unlink(missing_ok=True)
    assert read(folder)
    PLACES[kind](folder / file)
    assert not read(folder)


ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 70), 10**300, 0.5, 1e308, float("nan"), float("inf"), "",
    "x", "\ud800", "a\0b", "../../x", "/etc/passwd", "C:\\x", "\u2581" * 300, [], {}, [[]], [None], [[0, "a"]],
    {"": ""}, {"type": "x"}, {"content": 5}, ["a"] * 1000, [0] * 1000, {"a": {"b": {"c": [{}]}}},
)  # fmt: skip


def _deep(value: Any, levels: int = 100) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def _change_json(document: Any, random: Random) -> None:
    """Put an odd value somewhere, at any depth, or take away, copy or swap what is there."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = random.choice(keys)
        child = node[key]
        if not isinstance(child, dict | list) or not child or random.random() < 0.2:
            break
        node = child
    match random.randrange(8):
        case 0:
            del node[key]
        case 1:
            other = random.choice(keys)
            node[key], node[other] = node[other], node[key]
        case 2 if isinstance(node, list):
            node.insert(key, child)
        case 3 if isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        case 4:
            node[key] = _deep(child)
        case _:
            node[key] = random.choice(ODD)


def _change_bytes(data: bytes, random: Random, first: int) -> bytes:
    """Set, cut out, put in or repeat some bytes, mostly among the *first*."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(min(first, len(changed)) or 1) if random.random() < 0.9 else random.randrange(len(data))
        n = random.choice((0, 1, 1, 2, 4, 8))
        new = random.choice((b"", b"\0", b"\xff", b"\x80\x01", bytes(8), b"\xff" * 8, b'"', b"{", b"1e999", b"\n"))
        changed[at : at + n] = new * random.choice((1, 1, 1, 50))
    if random.random() < 0.1:
        del changed[random.randrange(len(changed) or 1) :]
    return bytes(changed)


def _change(data: bytes, file: Path, random: Random) -> bytes:
    """Change the structure where it is JSON, of safetensors the header's; else bytes."""
    start, end = 0, len(data) if file.suffix == ".json" else 0
    if file.suffix == ".safetensors":
        start, end = 8, 8 + int.from_bytes(data[:8], "little")
    if not end or random.random() < 0.25:
        return _change_bytes(data, random, end or 4096)
    document = json.loads(data[start:end])
    for _ in range(random.randint(1, 3)):
        if document:
            _change_json(document, random)
    text = json.dumps(document).encode()
    return (len(text).to_bytes(8, "little") + text if start else text) + data[end:]


# Seeds, not hypothesis' own random numbers: a large document needs more of those than an example may draw.
randoms = st.integers(0, 1 << 32).map(Random)


@pytest.mark.parametrize("name", MODELS)
def test_a_changed_checkpoint(name: str, read: Read, tmp_path: Path, tally: Any) -> None:
    """Each file of each fixture with bytes or JSON values changed: our error or a plan."""
    folder = _copy(name, tmp_path / "m")
    files = _files(folder)
    contents = {file: (folder / file).read_bytes() for file in files}

    @settings(max_examples=12)
    @given(random=randoms)
    def check(random: Random) -> None:
        file = random.choice(files)
        changed = _change(contents[file], file, random)
        with tally("changed bytes or values in a checkpoint"):
            (folder / file).write_bytes(changed)
            try:
                read(folder)
            finally:
                (folder / file).write_bytes(contents[file])

    check()


def test_a_changed_gguf(read: Read, tmp_path: Path, silent_log: Any, tally: Any) -> None:
    """A real GGUF with bytes of its header changed, as MODEL: our error or a plan."""
    whole = tmp_path / "m.gguf"
    flow.convert(str(ARCH / "llama3"), whole, "auto", silent_log)
    data = whole.read_bytes()
    assert read(whole)

    @settings(max_examples=150)
    @given(random=randoms)
    def check(random: Random) -> None:
        changed = _change_bytes(data, random, 20_000)
        with tally("changed bytes in a GGUF"):
            whole.write_bytes(changed)
            read(whole)

    check()


def test_a_changed_adapter(read: Read, oracle: Any, tmp_path: Path, tally: Any) -> None:
    """A LoRA adapter with bytes or JSON values changed: our error or a plan."""
    base, adapter = ARCH / "llama3", tmp_path / "adapter"
    rows, columns = open_checkpoint(base).tensors["model.layers.0.self_attn.q_proj.weight"].shape
    shapes = {"A": (4, columns), "B": (rows, 4)}
    names = {f"model.layers.0.self_attn.q_proj.lora_{part}.weight": shape for part, shape in shapes.items()}
    oracle("adapters").save_adapter(adapter, {name: np.ones(shape, np.float32) for name, shape in names.items()})
    assert read(base, adapter)
    contents = {file: (adapter / file).read_bytes() for file in _files(adapter)}

    @settings(max_examples=80)
    @given(random=randoms)
    def check(random: Random) -> None:
        file = random.choice(sorted(contents))
        changed = _change(contents[file], file, random)
        with tally("changed bytes or values in an adapter"):
            (adapter / file).write_bytes(changed)
            try:
                read(base, adapter)
            finally:
                (adapter / file).write_bytes(contents[file])

    check()


@pytest.mark.skipif(not _STATM.exists(), reason="needs /proc")
def test_this_process_is_small() -> None:
    """The bound on memory means something: what the tests above hold is far below it."""
    assert resident_bytes() < 2 * MEMORY
    with pytest.raises(MemoryError):
        bytearray(2 * MEMORY)
