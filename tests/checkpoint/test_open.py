from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors

from pipeline.checkpoint import open_checkpoint
from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.types import FileHead

Write = Callable[..., Path]
INDEX = "model.safetensors.index.json"


def _row(begin: int = 0) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, begin + 1]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and no weights."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 8}')
    return tmp_path


@pytest.fixture
def shards(folder: Path, write: Write) -> Callable[[Any], Path]:
    """Two shards, a with a1 and a2, b with b1, under the given weight_map (or a whole index)."""
    write({"a1": _row(), "a2": _row(1)}, b"\1\2", name="a.safetensors")
    write({"b1": _row()}, b"\3", name="b.safetensors")

    def put(index: Any) -> Path:
        if isinstance(index, dict) and "weight_map" not in index:
            index = {"metadata": {"total_size": 3}, "weight_map": index}
        (folder / INDEX).write_text(json.dumps(index))
        return folder

    return put


GOOD = {"a1": "a.safetensors", "a2": "a.safetensors", "b1": "b.safetensors"}


def test_files_that_are_not_there_yet(real: Path, tmp_path: Path) -> None:
    """With the headers of all weights at hand the checkpoint is the same as with the weights."""
    for path in real.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, tmp_path)
    heads = {}
    for path in real.glob("*.safetensors"):
        data = path.read_bytes()
        n = 8 + int.from_bytes(data[:8], "little")
        heads[tmp_path / path.name] = FileHead(data[:n], len(data))
    here, there = open_checkpoint(real), open_checkpoint(tmp_path, heads)
    assert list(there.tensors) == list(here.tensors)
    for name, tensor in there.tensors.items():
        assert tensor.path == tmp_path / here.tensors[name].path.name
        assert dataclasses.replace(tensor, path=here.tensors[name].path) == here.tensors[name]


def test_some_files_are_there(shards: Callable[[Any], Path], write: Write) -> None:
    """Files that are there and files whose headers are known go together; without the header one is missing."""
    folder = shards(GOOD)
    b = folder / "b.safetensors"
    heads = {b: FileHead(b.read_bytes(), b.stat().st_size)}
    b.unlink()
    assert set(open_checkpoint(folder, heads).tensors) == set(GOOD)
    (folder / INDEX).unlink()
    assert set(open_checkpoint(folder, heads).tensors) == set(GOOD)
    assert set(open_checkpoint(folder).tensors) == {"a1", "a2"}


def test_remote_headers_are_checked_as_files_are(folder: Path) -> None:
    """A header from elsewhere obeys every rule, and the size of its file is the one that was told."""
    text = json.dumps({"w": _row()}).encode()
    data = len(text).to_bytes(8, "little") + text
    path = folder / "model.safetensors"
    assert open_checkpoint(folder, {path: FileHead(data, len(data) + 1)}).n_bytes == 1
    for size, message in ((len(data), "w is not whole"), (len(data) + 2, "belong to no tensor")):
        with pytest.raises(FormatError, match=message):
            open_checkpoint(folder, {path: FileHead(data, size)})
    with pytest.raises(FormatError, match="its header is not whole"):
        open_checkpoint(folder, {path: FileHead(data[:-1], len(data) + 1)})


def test_real_checkpoints(real: Path) -> None:
    """Configs are read whole, and all tensors are there in the order of their names."""
    checkpoint = open_checkpoint(real)
    assert checkpoint.config == json.loads((real / "config.json").read_text())
    assert checkpoint.generation_config == json.loads((real / "generation_config.json").read_text())
    expected = {}
    for path in real.glob("*.safetensors"):
        with safetensors.safe_open(path, "numpy") as file:
            expected |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert {name: list(t.shape) for name, t in checkpoint.tensors.items()} == expected
    assert list(checkpoint.tensors) == sorted(expected)
    assert checkpoint.text_config() is checkpoint.config


def test_demo_counts(demo: Path) -> None:
    """The demo has 2,624,768 weights of two bytes and its licence."""
    checkpoint = open_checkpoint(demo)
    assert checkpoint.n_parameters == 2_624_768
    assert checkpoint.n_bytes == 2 * checkpoint.n_parameters
    assert checkpoint.licenses() == ((demo / "LICENSE").read_text(),)


def test_one_file_copied_anywhere(demo: Path, tmp_path: Path) -> None:
    """A checkpoint behind symbolic links, as in the Hub's cache, opens as well."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo / name, tmp_path / f"blob-{name}")
        (tmp_path / "snap").mkdir(exist_ok=True)
        (tmp_path / "snap" / name).symlink_to(f"../blob-{name}")
    assert len(open_checkpoint(tmp_path / "snap").tensors) == 38
    assert open_checkpoint(tmp_path / "snap").generation_config == {}


def test_nested_text_config(folder: Path, write: Write) -> None:
    """The language model's part is found where it is nested."""
    (folder / "config.json").write_text('{"architectures": ["X"], "text_config": {"hidden_size": 4}}')
    write({"t": _row()}, b"\0")
    assert open_checkpoint(folder).text_config() == {"hidden_size": 4}


def test_licence_texts(folder: Path, write: Write) -> None:
    """All licence files come in the order of their names, stray bytes do not stop, and size is limited."""
    write({"t": _row()}, b"\0")
    (folder / "NOTICE").write_text("n")
    (folder / "LICENSE.txt").write_bytes(b"caf\xe9")
    (folder / "license-extra.md").write_text("x")
    (folder / "LICENSES").mkdir()
    assert open_checkpoint(folder).licenses() == ("caf\ufffd", "n", "x")
    (folder / "COPYING").write_bytes(bytes(1_000_001))
    with pytest.raises(FormatError, match="is too large"):
        open_checkpoint(folder).licenses()


def test_shards(shards: Callable[[Any], Path]) -> None:
    """Tensors come from the shard that the index names; a stale total_size does not matter."""
    folder = shards({"metadata": {"total_size": 999.0}, "weight_map": GOOD})
    tensors = open_checkpoint(folder).tensors
    assert {n: t.path.name for n, t in tensors.items()} == GOOD
    assert list(tensors) == ["a1", "a2", "b1"]


def test_single_file_comes_before_the_index(shards: Callable[[Any], Path], write: Write) -> None:
    """With model.safetensors there, the index and its shards are not looked at."""
    folder = shards({"weight_map": "nonsense"})
    write({"t": _row()}, b"\0")
    assert list(open_checkpoint(folder).tensors) == ["t"]


def test_files_without_an_index(shards: Callable[[Any], Path], write: Write) -> None:
    """Without an index all files count, unless two claim one tensor; adapters are no part of it."""
    folder = shards(GOOD)
    (folder / INDEX).unlink()
    write({"a1": _row()}, b"\0", name="adapter_model.safetensors")
    assert list(open_checkpoint(folder).tensors) == ["a1", "a2", "b1"]
    write({"a1": _row()}, b"\0", name="c.safetensors")
    with pytest.raises(FormatError, match=r"(?s)c\.safetensors: the tensor a1 is in two files.*a\.safetensors"):
        open_checkpoint(folder)


INDEXES: dict[str, tuple[Any, list[str]]] = {
    "list": ([], ["is not an object"]),
    "no map": ({"weight_map": None}, ["has no weight_map", "null"]),
    "empty map": ({"weight_map": {}}, ["has no weight_map"]),
    "map is list": ({"weight_map": []}, ["has no weight_map", "an array"]),
    "metadata": ({"metadata": [], "weight_map": GOOD}, ["metadata is not an object"]),
    "total_size": ({"metadata": {"total_size": "3"}, "weight_map": GOOD}, ["total_size is not a number", "a string"]),
    "number": ({**GOOD, "b1": 2}, ["puts b1 in an impossible file", "a number"]),
    "parent": ({**GOOD, "b1": "../b.safetensors"}, ["impossible file", "'../b.safetensors'"]),
    "absolute": ({**GOOD, "b1": "/b.safetensors"}, ["impossible file"]),
    "folder": ({**GOOD, "b1": "x/b.safetensors"}, ["impossible file"]),
    "windows": ({**GOOD, "b1": "..\\b.safetensors"}, ["impossible file"]),
    "empty": ({**GOOD, "b1": ""}, ["impossible file", "''"]),
    "nul": ({**GOOD, "b1": "b\0.safetensors"}, ["impossible file"]),
    "other format": ({**GOOD, "b1": "config.json"}, ["impossible file", "'config.json'"]),
    "bad name": ({**GOOD, "\0": "b.safetensors"}, ["impossible name"]),
    "no shard": ({**GOOD, "c1": "c.safetensors"}, ["1 of 3 shards are missing", "c.safetensors", "download"]),
    "not in index": ({"a1": "a.safetensors", "b1": "b.safetensors"}, ["a2 is in a shard, but not in the index"]),
    "in no shard": ({**GOOD, "b2": "b.safetensors"}, ["its shard lacks: b2", "in b.safetensors", "in no shard"]),
    "other shard": ({**GOOD, "a2": "b.safetensors"}, ["its shard lacks: a2", "in b.safetensors", "in a.safetensors"]),
}


@pytest.mark.parametrize("case", INDEXES)
def test_bad_indexes(case: str, shards: Callable[[Any], Path]) -> None:
    """Index and shards that contradict each other are refused, with the tensor and the file."""
    index, parts = INDEXES[case]
    folder = shards(index)
    with pytest.raises(FormatError) as caught:
        open_checkpoint(folder)
    for part in [str(folder), *parts]:
        assert part in str(caught.value)


def test_tensor_in_two_shards(shards: Callable[[Any], Path], write: Write) -> None:
    """One name in two shards is refused, whichever the index means."""
    folder = shards(GOOD)
    write({"b1": _row(), "a2": _row(1)}, b"\3\2", name="b.safetensors")
    with pytest.raises(FormatError, match="the tensor a2 is in two files"):
        open_checkpoint(folder)


def test_duplicate_key_in_the_index(folder: Path, shards: Callable[[Any], Path]) -> None:
    """An index that maps one tensor twice is refused."""
    shards(GOOD)
    (folder / INDEX).write_text('{"weight_map": {"a1": "a.safetensors", "a1": "b.safetensors"}}')
    with pytest.raises(FormatError, match="has the key 'a1' twice"):
        open_checkpoint(folder)


def test_cut_shard_is_named(shards: Callable[[Any], Path]) -> None:
    """A truncated shard is the one that the message names."""
    folder = shards(GOOD)
    shard = folder / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"(?s)b\.safetensors: is cut short.*download"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("weights.bin", "save_pretrained"),
        ("consolidated.00.pth", "save_pretrained"),
        ("m.gguf", "as MODEL"),
        ("adapter_config.json", "--adapter"),
        ("readme.txt", "download the folder again"),
    ],
)
def test_other_formats(name: str, hint: str, folder: Path) -> None:
    """Weights in another format are named with the way out."""
    (folder / name).write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="holds no weights") as caught:
        open_checkpoint(folder)
    assert hint in str(caught.value)


def test_no_tensor_at_all(folder: Path, write: Write) -> None:
    """A file without tensors is no model."""
    write({})
    with pytest.raises(FormatError, match="holds no tensor"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (None, "has no config.json"),
        ("[]", "is not an object"),
        ("{}", "no such key"),
        ('{"architectures": null}', "null"),
        ('{"architectures": []}', "an array"),
        ('{"architectures": "Llama"}', "a string"),
        ('{"architectures": [""]}', "which architecture"),
        ('{"architectures": ["X"], "architectures": ["Y"]}', "twice"),
    ],
)
def test_bad_configs(config: str | None, part: str, folder: Path, write: Write) -> None:
    """A config that does not name its architecture is refused."""
    write({"t": _row()}, b"\0")
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    with pytest.raises(FormatError) as caught:
        open_checkpoint(folder)
    assert part in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    """A path that is no folder is refused as such."""
    with pytest.raises(InputError, match="is not a folder"):
        open_checkpoint(tmp_path / "none")
