from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.checkpoint import TensorReader, open_checkpoint, read_torch
from pipeline.errors import FormatError, UnsupportedError
from pipeline.types import SourceTensor
from pipeline.views import view_of

RNG = np.random.default_rng(5)
REAL = Path(__file__).parent.parent / "fixtures" / "checkpoints" / "bloom_bin"


def _values(tensor: SourceTensor) -> np.ndarray:
    """Read a whole tensor as its view gives it, bytes in, float32 out."""
    n_cols = tensor.shape[-1] if tensor.shape else 1
    n_rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    view = view_of(tensor)
    with TensorReader() as reader:
        raw = np.empty((n_rows, n_cols * (4 if view.dtype == "F32" else 2)), np.uint8)
        view.read(reader, np.arange(n_rows), slice(None), raw)
        out = np.empty((n_rows, n_cols), np.float32)
        reader.decode(view.dtype, raw, out)
    return out.reshape(tensor.shape)


def test_a_real_file_has_the_tensors_of_the_official_converter() -> None:
    """Every tensor of a file by torch 2 is found; those that the converter copies have the hashes it found."""
    tensors = read_torch(REAL / "pytorch_model.bin")
    assert list(tensors) == sorted(tensors)
    official = {t["sha256"]: t for t in json.loads((REAL / "official.json").read_text())["tensors"]}
    found = {hashlib.sha256(_values(t).tobytes()).hexdigest() for t in tensors.values()}
    assert len(official) == 29
    assert len(official.keys() & found) == 25  # all but query_key_value, which it reorders
    assert tensors["transformer.word_embeddings.weight"].shape == (384, 64)
    assert all(t.offset % 64 == 0 and t.dtype == "F32" and t.view is None for t in tensors.values())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_all_protocols_types_and_wrappers(torch_save: Any, tmp_path: Path, protocol: int) -> None:
    """Plain dicts and ordered ones with torch's attributes, parameters and every element type are read."""
    first = RNG.normal(size=(3, 4)).astype(np.float32)
    state: Any = OrderedDict(
        a=first,
        b=RNG.normal(size=5).astype(np.float16),
        c=np.array([[0x3F80, 0xC000]], np.uint16),
        d=np.arange(3, dtype=np.int64),
        e=np.array(True),
        f=np.arange(4.0),
    )
    state._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    tensors = read_torch(torch_save.save(tmp_path / "x.bin", state, protocol))
    assert {n: (t.dtype, t.shape) for n, t in tensors.items()} == {
        "a": ("F32", (3, 4)), "b": ("F16", (5,)), "c": ("BF16", (1, 2)), "d": ("I64", (3,)), "e": ("BOOL", ()),
        "f": ("F64", (4,)),
    }  # fmt: skip
    np.testing.assert_array_equal(_values(tensors["a"]), first)
    np.testing.assert_array_equal(_values(tensors["b"]), state["b"].astype(np.float32))
    np.testing.assert_array_equal(_values(tensors["c"]), [[1, -2]])


def test_parameters_are_tensors(torch_save: Any, tmp_path: Path, parameter: Callable[..., Any]) -> None:
    """A state dict of parameters gives the tensors inside."""
    array = RNG.normal(size=(2, 2)).astype(np.float32)
    tensors = read_torch(torch_save.save(tmp_path / "x.bin", {"w": parameter(array)}))
    np.testing.assert_array_equal(_values(tensors["w"]), array)


def test_windows_and_ties(torch_save: Any, tmp_path: Path) -> None:
    """Tensors may share a storage, wholly (tied weights) or as windows; each is a span of the file."""
    whole = RNG.normal(size=(6, 8)).astype(np.float32)
    tensors = read_torch(torch_save.save(tmp_path / "x.bin", {"all": whole, "tied": whole, "part": whole[2:4]}))
    assert tensors["all"].offset == tensors["tied"].offset
    assert tensors["part"].offset == tensors["all"].offset + 2 * 8 * 4
    np.testing.assert_array_equal(_values(tensors["part"]), whole[2:4])


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (1, 7), (7, 1)])
def test_transposed_matrices(torch_save: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A transpose keeps its logical shape and values, whole, in bands of columns, and row by row."""
    array = RNG.normal(size=shape).astype(np.float32)
    turned = array.swapaxes(-1, -2)
    tensor = read_torch(torch_save.save(tmp_path / "x.bin", {"w": turned}))["w"]
    assert tensor.shape == turned.shape
    np.testing.assert_array_equal(_values(tensor), turned)
    band = np.empty((1, 4), np.uint8)
    with TensorReader() as reader:
        view_of(tensor).read(reader, np.array([0]), slice(0, 1), band)
    assert band.view(np.float32)[0, 0] == turned.reshape(-1, turned.shape[-1])[0, 0]


@pytest.mark.parametrize(
    "cut",
    [lambda a: a[:, ::2], lambda a: a[:, :3], lambda a: a[:, 0], lambda a: a[::2], lambda a: a.reshape(2, 3, 8).T],
    ids=["every other column", "some columns", "a column", "every other row", "all dimensions turned"],
)  # fmt: skip
def test_holes_are_refused(torch_save: Any, tmp_path: Path, cut: Callable[[np.ndarray], np.ndarray]) -> None:
    """A window with holes is refused by its strides, with what to do."""
    array = np.ones((6, 8), np.float32)
    with pytest.raises(UnsupportedError, match=r"tensor w: .*holes") as error:
        read_torch(torch_save.save(tmp_path / "x.bin", {"w": cut(array)}))
    assert "contiguous()" in (error.value.hint or "")


def test_a_window_may_not_leave_its_storage(tmp_path: Path, torch_save: Any) -> None:
    """A start or a shape beyond the storage is an error, not a read elsewhere in the file."""
    path = torch_save.save(tmp_path / "x.bin", {"w": np.ones((4, 4), np.float32)})
    data, _ = torch_save.dumps({"w": np.ones((4, 4), np.float32)})
    assert data.count(b"K\x00K\x04K\x04\x86") == 1  # start 0, shape (4, 4)
    for evil in (b"K\x01K\x04K\x04\x86", b"K\x00K\x05K\x04\x86"):
        _rewrite(path, {"archive/data.pkl": data.replace(b"K\x00K\x04K\x04\x86", evil)})
        with pytest.raises(FormatError, match="leaves its storage"):
            read_torch(path)


def _rewrite(path: Path, changed: dict[str, bytes | None], kind: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again with some entries changed, removed (None) or added."""
    with zipfile.ZipFile(path) as file:
        entries: dict[str, bytes | None] = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in (entries | changed).items():
            if data is not None:
                file.writestr(name, data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"archive/data.pkl": None}, "not one of torch.save"),
        ({"elsewhere/data.pkl": b"."}, "not one of torch.save"),
        ({"archive/data/0": None}, "missing or has another size"),
        ({"archive/data/0": b"123"}, "missing or has another size"),
        ({"archive/byteorder": b"big"}, "big-endian"),
        ({"archive/version": b"11\n"}, "unknown version"),
        ({"archive/version": b"x"}, "unknown version"),
        ({"archive/version": b"1" * 200}, "too big"),
        ({"archive/constants.pkl": b"."}, "TorchScript"),
        ({"archive/code/__torch__.py": b"."}, "TorchScript"),
    ],
)
def test_archives_that_are_something_else(
    torch_save: Any, tmp_path: Path, changed: dict[str, bytes | None], message: str
) -> None:
    """Each rule of torch's container has its message."""
    path = torch_save.save(tmp_path / "x.bin", {"w": np.ones(4, np.float32)})
    _rewrite(path, changed)
    with pytest.raises((FormatError, UnsupportedError), match=message):
        read_torch(path)


def test_a_damaged_pickle_is_noticed(torch_save: Any, tmp_path: Path) -> None:
    """A flipped bit in the header fails its CRC before it is read."""
    path = torch_save.save(tmp_path / "x.bin", {"weight": np.ones(4, np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(b"weight")] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        read_torch(path)


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", UnsupportedError, "torch before 1.6"),
        (b"version https://git-lfs.github.com/spec/v1\n", FormatError, "LFS pointer"),
        (b"", FormatError, "no file that torch.save wrote"),
        (b"\x80\x04cos\nsystem\n", FormatError, "no file that torch.save wrote"),
    ],
)
def test_other_files(tmp_path: Path, start: bytes, error: type[Exception], message: str) -> None:
    """Legacy pickles, LFS pointers and anything else are told apart by their first bytes."""
    (tmp_path / "x.bin").write_bytes(start)
    with pytest.raises(error, match=message) as raised:
        read_torch(tmp_path / "x.bin")
    if "1.6" in message:
        assert "weights_only=True" in str(raised.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder or nothing at all is said as such."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FormatError, match=r"is not a file|cannot be read"):
            read_torch(path)


# In a folder.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and no weights."""
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return tmp_path


def test_a_folder_with_one_bin(folder: Path, torch_save: Any) -> None:
    """pytorch_model.bin alone is a checkpoint; safetensors beside it come first, whatever their name."""
    torch_save.save(folder / "pytorch_model.bin", {"w": np.ones(4, np.float32)})
    assert list(open_checkpoint(folder).tensors) == ["w"]
    header = b'{"s":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (folder / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert list(open_checkpoint(folder).tensors) == ["s"]


def test_a_folder_with_shards(folder: Path, torch_save: Any) -> None:
    """Shards are found by their index, which must agree with them."""
    torch_save.save(folder / "pytorch_model-00001-of-00002.bin", {"a": np.ones(4, np.float32)})
    torch_save.save(folder / "pytorch_model-00002-of-00002.bin", {"b": np.ones(4, np.float32)})
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    tensors = open_checkpoint(folder).tensors
    assert {n: t.path.name for n, t in tensors.items()} == weight_map
    index.write_text(json.dumps({"weight_map": weight_map | {"b": "model.safetensors"}}))
    with pytest.raises(FormatError, match="impossible file"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"a": weight_map["a"]}}))
    assert list(open_checkpoint(folder).tensors) == ["a"]
    (folder / weight_map["a"]).unlink()
    with pytest.raises(FormatError, match="1 of 1 shards are missing"):
        open_checkpoint(folder)


def test_other_names_are_explained(folder: Path) -> None:
    """A .bin under another name is not guessed at."""
    shutil.copy(REAL / "pytorch_model.bin", folder / "weights.bin")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin"):
        open_checkpoint(folder)
