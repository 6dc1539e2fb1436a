"""From a checkpoint's tensors to the tensors of the file.

Each source matches exactly one row or an explicit drop; each row finds its sources.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.arch._base import Arch, Row, pattern
from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError, UnsupportedError
from pipeline.types import Op, SourceTensor

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Mapped:
    """One output tensor before its type is known: *shape* is row-major."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[SourceTensor, ...]
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class MappedTensors:
    """What `map_tensors` found: output tensors in row order, and the names of sources that are left out."""

    tensors: tuple[Mapped, ...]
    dropped: tuple[str, ...]


def map_tensors(arch: Arch, config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> MappedTensors:
    """Match every tensor of a checkpoint with the rows of *arch*.

    Raises:
        UnsupportedError: if a tensor fits no row.
        FormatError: if a required tensor is missing, or a shape does not suit its row.
    """
    by_row: dict[Row, dict[int, SourceTensor]] = {row: {} for row in arch.rows}
    dropped, unknown = [], []
    for name, tensor in tensors.items():
        found = _row_of(arch, name, config.n_layers)
        if _is_dropped(arch, config, name):
            dropped.append(name)
        elif found is not None:
            by_row[found[0]][found[1]] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise _unmapped(arch, unknown)
    return MappedTensors(tuple(_outputs(arch, config, by_row)), tuple(dropped))


def _is_dropped(arch: Arch, config: ModelConfig, name: str) -> bool:
    # A head that is tied is the embedding matrix again: transformers does not read it either.
    return (name == HEAD and config.is_tied) or any(pattern(p).fullmatch(name) for p in arch.drop)


def _row_of(arch: Arch, name: str, n_layers: int) -> tuple[Row, int] | None:
    for row in arch.rows:
        match = pattern(row.source).fullmatch(name)
        if match is None:
            continue
        bid = int(match.groupdict().get("bid") or 0)
        return (row, bid) if bid < n_layers else None
    return None


def _outputs(arch: Arch, config: ModelConfig, by_row: dict[Row, dict[int, SourceTensor]]) -> Iterator[Mapped]:
    for row, found in by_row.items():
        # A head that is neither tied nor there would make a model that cannot answer.
        required = not config.is_tied if row.source == HEAD else not row.optional
        for bid in range(config.n_layers) if row.per_block else range(1):
            source = found.get(bid)
            if source is not None:
                yield _output(row, bid, source, config)
            elif required:
                raise FormatError(
                    "the checkpoint lacks a tensor that this architecture needs",
                    where=row.source.replace("{bid}", str(bid)),
                    expected=f"a tensor for {row.target.replace('{bid}', str(bid))} of {arch.name}",
                    found="no tensor of that name",
                    hint="download the checkpoint again; a base model without its head cannot generate text",
                )


def _output(row: Row, bid: int, source: SourceTensor, config: ModelConfig) -> Mapped:
    ops = tuple(factory(config) for factory in row.ops)
    shape = source.shape
    try:
        for op in ops:
            shape = op.shape(shape)
    except FormatError as exc:
        raise FormatError(
            exc.what,
            where=f"{source.path.name}, tensor {source.name}",
            expected=exc.expected,
            found=exc.found,
            hint="do config.json and the weights belong together?",
        ) from exc
    return Mapped(row.target.replace("{bid}", str(bid)), shape, (source,), ops)


def _unmapped(arch: Arch, names: list[str]) -> UnsupportedError:
    first = names[0]
    closest = difflib.get_close_matches(first, [row.source for row in arch.rows], n=1, cutoff=0.0)
    return UnsupportedError(
        f"a tensor fits no row of {arch.name!r} ({len(names)} such)",
        where=first,
        expected=f"a name like {closest[0]}" if closest else None,
        found=", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
        hint='is config.json\'s "architectures" right? Weights that are packed (GPTQ, AWQ, bitsandbytes) and adapters '
        "are not supported by this version",
    )
