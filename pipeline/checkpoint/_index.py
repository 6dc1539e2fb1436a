"""Collect the tensors of a folder from one file of weights, or from shards and their index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.checkpoint.safetensors import check_name, read_header
from pipeline.checkpoint.torch_zip import read_torch
from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import has_file, json_type, read_json, shorten
from pipeline.types import FileHead, SourceTensor

_MAX_INDEX = 100_000_000
_AGAIN = "download the folder again; a download that stopped half way leaves files out"
_OTHER_FORMATS = {
    ".gguf": "a .gguf is already converted: give the file itself as MODEL",
    ".bin": "weights as pickle are read under the names pytorch_model.bin and pytorch_model.bin.index.json only: rename"
    " the file if that is what it is, or save the model again with save_pretrained",
}
_OTHER_FORMATS |= dict.fromkeys((".pt", ".pth", ".ckpt"), _OTHER_FORMATS[".bin"])


Heads = Mapping[Path, FileHead]


@dataclass(frozen=True)
class _Format:
    """One way to keep weights: in the file *single*, or in files ending in *suffix* that *index* names."""

    single: str
    index: str
    suffix: str
    read: Callable[[Path, FileHead | None], dict[str, SourceTensor]]


def _read_safetensors(path: Path, head: FileHead | None) -> dict[str, SourceTensor]:
    return read_header(path, head).tensors


def _read_torch(path: Path, _head: FileHead | None) -> dict[str, SourceTensor]:
    return read_torch(path)  # its directory is at the end, so nobody fetches a head of it


_SAFETENSORS = _Format("model.safetensors", "model.safetensors.index.json", ".safetensors", _read_safetensors)
_TORCH = _Format("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin", _read_torch)


def collect(folder: Path, remote_headers: Heads) -> dict[str, SourceTensor]:
    """Find every tensor of the checkpoint in *folder*, in the order of names; only headers are read.

    safetensors come before pytorch_model.bin, and of each a single file before an index, as transformers has it; with
    none of these names, all *.safetensors are taken.  Files in *remote_headers* count as if they were there.

    Raises:
        FormatError: if a file is bad, or index and shards contradict each other.
        UnsupportedError: if the weights are in another format.
    """
    loose = {*folder.glob("*.safetensors"), *remote_headers}
    shards = sorted(p for p in loose if not p.name.startswith("adapter"))
    tensors = _named(folder, _SAFETENSORS, remote_headers)
    if tensors is None and shards:
        tensors = _merge(shards, _SAFETENSORS, remote_headers)
    if tensors is None:
        tensors = _named(folder, _TORCH, remote_headers)
    if tensors is None:
        raise _none(folder)
    if not tensors:
        raise FormatError("holds no tensor", where=folder, expected="a model's weights", hint=_AGAIN)
    return dict(sorted(tensors.items()))


def _named(folder: Path, kind: _Format, remote_headers: Heads) -> dict[str, SourceTensor] | None:
    single = folder / kind.single
    if single in remote_headers or has_file(single):
        return kind.read(single, remote_headers.get(single))
    return _sharded(folder, kind, remote_headers) if has_file(folder / kind.index) else None


def _none(folder: Path) -> UnsupportedError:
    hint = next((h for end, h in _OTHER_FORMATS.items() if any(folder.glob(f"*{end}"))), None)
    if (folder / "adapter_config.json").exists():
        hint = "this is an adapter (LoRA): name its base model as MODEL, and this folder with --adapter"
    return UnsupportedError(
        "holds no weights",
        where=folder,
        expected=f"{_SAFETENSORS.single}, {_SAFETENSORS.index} with its shards, or the same of {_TORCH.single}",
        hint=hint or _AGAIN,
    )


def _merge(shards: list[Path], kind: _Format, remote_headers: Heads) -> dict[str, SourceTensor]:
    tensors: dict[str, SourceTensor] = {}
    for shard in shards:
        for name, tensor in kind.read(shard, remote_headers.get(shard)).items():
            if name in tensors:
                raise FormatError(
                    f"the tensor {name} is in two files",
                    where=shard,
                    found=tensors[name].path.name,
                    hint="leave one copy of the weights in the folder",
                )
            tensors[name] = tensor
    return tensors


def read_weight_map(path: Path, suffix: str = _SAFETENSORS.suffix) -> dict[str, str]:
    """Read the `weight_map` of an index: the shard, a file name beside the index ending in *suffix*, of each tensor.

    Raises:
        FormatError: if it is not that.
    """
    index = read_json(path, _MAX_INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            "has no weight_map", where=path, expected="the file of each tensor", found=json_type(weight_map)
        )
    _check_total(index.get("metadata", {}), path)
    for name, shard in weight_map.items():
        check_name(name, f"{path}, weight_map")
        if not isinstance(shard, str) or not _is_plain(shard, suffix):
            raise FormatError(
                f"weight_map puts {name} in an impossible file",
                where=path,
                expected=f"the name of a {suffix} file in the same folder",
                found=shorten(shard) if isinstance(shard, str) else json_type(shard),
            )
    return weight_map


def _is_plain(shard: str, suffix: str) -> bool:
    """Say whether *shard* is the name of a file beside the index, on any system."""
    return (
        PurePosixPath(shard).name == shard
        and "\\" not in shard
        and shard.isprintable()
        and len(shard) <= 255
        and shard.endswith(suffix)
    )


def _check_total(metadata: object, path: Path) -> None:
    # total_size is often stale after edits, so its value is not compared; another type means another format.
    if not isinstance(metadata, dict):
        raise FormatError("its metadata is not an object", where=path, expected="{...}", found=json_type(metadata))
    total = metadata.get("total_size", 0)
    if isinstance(total, bool) or not isinstance(total, int | float):
        raise FormatError("its total_size is not a number", where=path, expected="bytes", found=json_type(total))


def _sharded(folder: Path, kind: _Format, remote_headers: Heads) -> dict[str, SourceTensor]:
    path = folder / kind.index
    weight_map = read_weight_map(path, kind.suffix)
    shards = [folder / name for name in sorted(set(weight_map.values()))]
    missing = [p.name for p in shards if p not in remote_headers and not p.exists()]
    if missing:
        raise FormatError(
            f"{len(missing)} of {len(shards)} shards are missing",
            where=folder,
            expected=", ".join(missing[:3]),
            found="not there",
            hint=_AGAIN,
        )
    tensors = _merge(shards, kind, remote_headers)
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise FormatError(
                f"the tensor {name} is in a shard, but not in the index",
                where=tensor.path,
                expected=f"a row in {kind.index}",
                hint=_AGAIN,
            )
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise FormatError(
                f"the index names a tensor that its shard lacks: {name}",
                where=path,
                expected=f"in {shard}",
                found=f"in {tensors[name].path.name}" if name in tensors else "in no shard",
                hint=_AGAIN,
            )
    return tensors
