"""From a checkpoint's tensors to the tensors of the file.

Each source fits the rows of exactly one pattern, or an explicit drop; each row finds its sources.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.arch._base import Arch, Row, pattern
from pipeline.arch._config import ModelConfig
from pipeline.errors import FormatError, UnsupportedError
from pipeline.types import SourceTensor, View
from pipeline.views import view_of

HEAD = "lm_head.weight"
EMBEDDING = "token_embd.weight"
HEADS = (HEAD, "embed_out.weight")

# Where a source belongs: its pattern, its block, its expert (0 where there is none).
_Place = tuple[str, int, int]


@dataclass(frozen=True)
class Mapped:
    """One output tensor before its type is known."""

    name: str
    view: View


@dataclass(frozen=True)
class MappedTensors:
    """What `map_tensors` found: output tensors in row order, and what is left out.

    *dropped* are names of sources that nothing needs; *lost* counts the sources of each ability that the file lacks.
    *scalars* are tensors with one number, named by the metadata key they belong to, in the order of their blocks.
    """

    tensors: tuple[Mapped, ...]
    dropped: tuple[str, ...]
    lost: Mapping[str, int]
    scalars: tuple[Mapped, ...] = ()


def map_tensors(arch: Arch, config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> MappedTensors:
    """Match every tensor of a checkpoint with the rows of *arch*.

    Raises:
        UnsupportedError: if a tensor fits no row.
        FormatError: if a required tensor is missing, or a shape does not suit its row.
    """
    rows = (*arch.rows, *arch.scalars)
    places = {place: None for row in rows for place in _places(row, config, row.blocks(config))}
    patterns = list(dict.fromkeys(name for row in rows for name in row.patterns))
    found: dict[_Place, SourceTensor] = {}
    dropped, unknown = [], []
    lost: dict[str, int] = {}
    for own_name, tensor in tensors.items():
        name = _canonical(arch, own_name)
        place = _place_of(patterns, name)
        if _is_dropped(arch, config, name):
            dropped.append(name)
        elif ability := _ability(arch, config, name):
            lost[ability] = lost.get(ability, 0) + 1
        elif place not in places:
            unknown.append(own_name)
        elif place in found:
            raise _twice(found[place].name, own_name)
        else:
            found[place] = tensor
    if unknown:
        raise _unmapped(arch, patterns, unknown)
    outputs = tuple(_outputs(arch, arch.rows, config, found))
    return MappedTensors(outputs, tuple(dropped), lost, tuple(_outputs(arch, arch.scalars, config, found)))


def with_padding(arch: Arch, config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> ModelConfig:
    """Count the padding of the vocabulary in vocab_size, where the embedding has it and config.json does not say so.

    Mamba's own checkpoints are like this; the multiples are those of llama.cpp's converter (`set_vocab`).  Where the
    embedding has as many rows as config.json says, such as after tokens were added, nothing is padded.

    Raises:
        FormatError: if the multiple in config.json is no size.
    """
    if arch.vocab_multiple == 1:
        return config
    said = config.get(int, "pad_vocab_size_multiple") is not None
    multiple = config.within(1, 1 << 20, "pad_vocab_size_multiple") if said else arch.vocab_multiple
    rows = -(-config.n_vocab // multiple) * multiple
    names = {name for row in arch.rows if row.target == EMBEDDING for name in row.patterns}
    shapes = [tensor.shape for name, tensor in tensors.items() if _canonical(arch, name) in names]
    if any(shape[:1] == (rows,) for shape in shapes):
        return ModelConfig({**config.raw, "vocab_size": rows}, config.pooling)
    return config


def _canonical(arch: Arch, name: str) -> str:
    begin = next(((old, new) for old, new in arch.prefixes if name.startswith(old)), ("", ""))
    end = next(((old, new) for old, new in arch.spellings.items() if name.endswith(old)), ("", ""))
    return begin[1] + name.removeprefix(begin[0]).removesuffix(end[0]) + end[1]


def _ability(arch: Arch, config: ModelConfig, name: str) -> str | None:
    for text, ability in arch.abilities.items():
        match = pattern(text).fullmatch(name)
        if match and ("bid" not in match.groupdict() or int(match["bid"]) in config.extra_layers):
            return ability
    return None


def _places(row: Row, config: ModelConfig, bids: Sequence[int]) -> Iterator[_Place]:
    for name in row.patterns:
        for bid in bids if "{bid}" in name else [0] * bool(bids):
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
    return (name in HEADS and config.is_tied) or any(pattern(p).fullmatch(name) for p in arch.drop)


def _outputs(
    arch: Arch, rows: tuple[Row, ...], config: ModelConfig, found: Mapping[_Place, SourceTensor]
) -> Iterator[Mapped]:
    layouts: dict[str, list[Row]] = {}
    for row in rows:
        layouts.setdefault(row.target, []).append(row)
    for same in layouts.values():
        for bid in sorted({bid for row in same for bid in _blocks(row, config)}):
            if (tensor := _one_of(arch, same, bid, config, found)) is not None:
                yield tensor


def _one_of(
    arch: Arch, rows: list[Row], bid: int, config: ModelConfig, found: Mapping[_Place, SourceTensor]
) -> Mapped | None:
    """Make one output tensor by the row whose layout the checkpoint has."""
    given: list[tuple[Row, list[_Place]]] = []
    first_missing: tuple[int, Row, _Place] | None = None
    for row in (row for row in rows if bid in _blocks(row, config)):
        wanted = list(_places(row, config, (bid,)))
        missing = [place for place in wanted if place not in found]
        # A head that is neither tied nor there would make a model that cannot answer.
        is_required = not config.is_tied if row.source in HEADS else not row.optional
        n_found = len(wanted) - len(missing)
        if wanted and not missing:
            given.append((row, wanted))
        elif (n_found or is_required) and (first_missing is None or n_found > first_missing[0]):
            first_missing = (n_found, row, missing[0] if missing else (row.patterns[0], bid, 0))
    if len(given) > 1:
        raise _twice(*(found[places[0]].name for _, places in given[:2]))
    if first_missing and (not given or first_missing[0]):
        raise _missing(arch, *first_missing[1:])
    return _output(arch, given[0][0], bid, [found[p] for p in given[0][1]], config) if given else None


def _blocks(row: Row, config: ModelConfig) -> Sequence[int]:
    bids = row.blocks(config)
    return bids if any("{bid}" in name for name in row.patterns) else [0] * bool(bids)


def _output(arch: Arch, row: Row, bid: int, sources: list[SourceTensor], config: ModelConfig) -> Mapped:
    views: list[View] = [view_of(source) for source in sources]
    is_single = len(row.patterns) == 1 and "{xid}" not in row.patterns[0]
    try:
        if row.steps and any(not view.shape for view in views):
            raise FormatError("a tensor has no dimensions", expected="rows of weights", found="a single number")
        view = views[0] if is_single else row.merge(config, views)
        for step in row.steps:
            view = step(config, view)
        if row.shape and view.shape != (expected := row.shape(config)):
            raise FormatError("a tensor has another shape than config.json says", expected=expected, found=view.shape)
    except FormatError as exc:
        if exc.where is not None:  # config.json's own fault, and it names the key
            raise
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


def _twice(first: str, second: str) -> FormatError:
    return FormatError(
        "the checkpoint has one tensor in two layouts",
        where=second,
        expected="one of them",
        found=f"{first} and {second}",
        hint="was it merged from files of two versions? Download it again into an empty folder",
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
