"""From a checkpoint's tensors to the tensors of the file.

Each source fits the rows of exactly one pattern, or an explicit drop; each row finds its sources.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.arch._base import Arch, Row, pattern
from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError, UnsupportedError
from pipeline.types import SourceTensor, View
from pipeline.views import view_of

HEAD = "lm_head.weight"

# Where a source belongs: its pattern, its block, its expert (0 where there is none).
_Place = tuple[str, int, int]


@dataclass(frozen=True)
class Mapped:
    """One output tensor before its type is known."""

    name: str
    view: View


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
    places = {place: None for row in arch.rows for place in _places(row, config)}
    patterns = list(dict.fromkeys(name for row in arch.rows for name in row.patterns))
    found: dict[_Place, SourceTensor] = {}
    dropped, unknown = [], []
    for name, tensor in tensors.items():
        place = _place_of(patterns, name)
        if _is_dropped(arch, config, name):
            dropped.append(name)
        elif place in places:
            found[place] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise _unmapped(arch, patterns, unknown)
    return MappedTensors(tuple(_outputs(arch, config, found)), tuple(dropped))


def _places(row: Row, config: ModelConfig) -> Iterator[_Place]:
    for name in row.patterns:
        for bid in row.blocks(config) if "{bid}" in name else (0,):
            for xid in range(config.n_experts) if "{xid}" in name else (0,):
                yield name, bid, xid


def _place_of(patterns: list[str], name: str) -> _Place | None:
    for text in patterns:
        match = pattern(text).fullmatch(name)
        if match:
            groups = match.groupdict()
            return text, int(groups.get("bid") or 0), int(groups.get("xid") or 0)
    return None


def _is_dropped(arch: Arch, config: ModelConfig, name: str) -> bool:
    # A head that is tied is the embedding matrix again: transformers does not read it either.
    return (name == HEAD and config.is_tied) or any(pattern(p).fullmatch(name) for p in arch.drop)


def _outputs(arch: Arch, config: ModelConfig, found: Mapping[_Place, SourceTensor]) -> Iterator[Mapped]:
    for row in arch.rows:
        # A head that is neither tied nor there would make a model that cannot answer.
        required = not config.is_tied if row.source == HEAD else not row.optional
        per_block = any("{bid}" in name for name in row.patterns)
        for bid in row.blocks(config) if per_block else (0,):
            wanted = [place for place in _places(row, config) if place[1] == bid or "{bid}" not in place[0]]
            missing = [place for place in wanted if place not in found]
            if not missing:
                yield _output(arch, row, bid, [found[place] for place in wanted], config)
            elif required or len(missing) < len(wanted):
                raise _missing(arch, row, missing[0])


def _output(arch: Arch, row: Row, bid: int, sources: list[SourceTensor], config: ModelConfig) -> Mapped:
    views: list[View] = [view_of(source) for source in sources]
    is_single = len(row.patterns) == 1 and "{xid}" not in row.patterns[0]
    try:
        view = views[0] if is_single else row.merge(config, views)
        for step in row.steps:
            view = step(config, view)
    except FormatError as exc:
        raise FormatError(
            exc.what,
            where=f"{sources[0].path.name}, tensor {sources[0].name}",
            expected=exc.expected,
            found=exc.found,
            hint=f"do config.json and the weights belong together? This is read as {arch.name}",
        ) from exc
    return Mapped(row.target.replace("{bid}", str(bid)), view)


def _missing(arch: Arch, row: Row, place: _Place) -> FormatError:
    name, bid, xid = place
    return FormatError(
        "the checkpoint lacks a tensor that this architecture needs",
        where=name.replace("{bid}", str(bid)).replace("{xid}", str(xid)),
        expected=f"a tensor for {row.target.replace('{bid}', str(bid))} of {arch.name}",
        found="no tensor of that name",
        hint="download the checkpoint again; a base model without its head cannot generate text",
    )


def _unmapped(arch: Arch, patterns: list[str], names: list[str]) -> UnsupportedError:
    closest = difflib.get_close_matches(names[0], patterns, n=1, cutoff=0.0)
    return UnsupportedError(
        f"a tensor fits no row of {arch.name!r} ({len(names)} such)",
        where=names[0],
        expected=f"a name like {closest[0]}" if closest else None,
        found=", ".join(names[:3]) + (" ..." if len(names) > 3 else ""),
        hint='is config.json\'s "architectures" right? Weights that are packed (GPTQ, AWQ, bitsandbytes) and adapters '
        "are not supported by this version",
    )
