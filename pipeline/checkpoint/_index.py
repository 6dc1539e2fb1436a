"""Collect the tensors of a folder from one safetensors file, or from shards and their index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pipeline.checkpoint.safetensors import check_name, read_header
from pipeline.errors import FormatError, UnsupportedError
from pipeline.strict_json import json_type, read_json, shorten
from pipeline.types import FileHead, SourceTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEX = 100_000_000
_AGAIN = "download the folder again; a download that stopped half way leaves files out"
_OTHER_FORMATS = {
    ".gguf": "a .gguf is already converted: quantize it with gguf-pipeline quantize",
    ".bin": "weights as pickle are not read; take a revision with safetensors (many repositories have one under"
    " refs/pr/), or save the model again with save_pretrained",
}
_OTHER_FORMATS |= dict.fromkeys((".pt", ".pth", ".ckpt"), _OTHER_FORMATS[".bin"])


def collect(folder: Path, remote_headers: Mapping[Path, FileHead]) -> dict[str, SourceTensor]:
    """Find every tensor of the checkpoint in *folder*, in the order of names; only headers are read.

    `model.safetensors` comes before an index, as transformers has it; with neither, all *.safetensors are taken.  Files
    in *remote_headers* count as if they were there.

    Raises:
        FormatError: if a file is bad, or index and shards contradict each other.
        UnsupportedError: if the weights are in no safetensors file.
    """
    single = folder / SINGLE
    if single in remote_headers or single.exists():
        tensors = read_header(single, remote_headers.get(single)).tensors
    elif (folder / INDEX).exists():
        tensors = _sharded(folder, remote_headers)
    else:
        tensors = _merge(_loose(folder, remote_headers), remote_headers)
    if not tensors:
        raise FormatError("holds no tensor", where=folder, expected="a model's weights", hint=_AGAIN)
    return dict(sorted(tensors.items()))


def _loose(folder: Path, remote_headers: Mapping[Path, FileHead]) -> list[Path]:
    there = {*folder.glob("*.safetensors"), *remote_headers}
    shards = sorted(p for p in there if not p.name.startswith("adapter"))
    if shards:
        return shards
    hint = next((h for end, h in _OTHER_FORMATS.items() if any(folder.glob(f"*{end}"))), None)
    if (folder / "adapter_config.json").exists():
        hint = "this is an adapter (LoRA): merge it into its base model and save that"
    raise UnsupportedError(
        "holds no safetensors weights",
        where=folder,
        expected=f"{SINGLE}, or {INDEX} with its shards",
        hint=hint or _AGAIN,
    )


def _merge(shards: list[Path], remote_headers: Mapping[Path, FileHead]) -> dict[str, SourceTensor]:
    tensors: dict[str, SourceTensor] = {}
    for shard in shards:
        for name, tensor in read_header(shard, remote_headers.get(shard)).tensors.items():
            if name in tensors:
                raise FormatError(
                    f"the tensor {name} is in two files",
                    where=shard,
                    found=tensors[name].path.name,
                    hint="leave one copy of the weights in the folder",
                )
            tensors[name] = tensor
    return tensors


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the `weight_map` of an index: the shard, a file name beside the index, of each tensor.

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
        if not isinstance(shard, str) or not _is_plain(shard):
            raise FormatError(
                f"weight_map puts {name} in an impossible file",
                where=path,
                expected="the name of a .safetensors file in the same folder",
                found=shorten(shard) if isinstance(shard, str) else json_type(shard),
            )
    return weight_map


def _is_plain(shard: str) -> bool:
    """Say whether *shard* is the name of a file beside the index, on any system."""
    return (
        PurePosixPath(shard).name == shard
        and "\\" not in shard
        and shard.isprintable()
        and len(shard) <= 255
        and shard.endswith(".safetensors")
    )


def _check_total(metadata: object, path: Path) -> None:
    # total_size is often stale after edits, so its value is not compared; another type means another format.
    if not isinstance(metadata, dict):
        raise FormatError("its metadata is not an object", where=path, expected="{...}", found=json_type(metadata))
    total = metadata.get("total_size", 0)
    if isinstance(total, bool) or not isinstance(total, int | float):
        raise FormatError("its total_size is not a number", where=path, expected="bytes", found=json_type(total))


def _sharded(folder: Path, remote_headers: Mapping[Path, FileHead]) -> dict[str, SourceTensor]:
    path = folder / INDEX
    weight_map = read_weight_map(path)
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
    tensors = _merge(shards, remote_headers)
    for name, tensor in tensors.items():
        if name not in weight_map:
            raise FormatError(
                f"the tensor {name} is in a shard, but not in the index",
                where=tensor.path,
                expected=f"a row in {INDEX}",
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
