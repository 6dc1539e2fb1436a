"""Every architecture refuses what does not fit it, and reads both styles of config.json; headers alone are read."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline import arch as archs
from pipeline.checkpoint import open_checkpoint
from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.types import SourceTensor

FIXTURES = Path(__file__).parent.parent / "fixtures" / "arch"
GOLDEN = sorted(path.name for path in FIXTURES.iterdir())


@cache
def _tensors_once(name: str) -> dict[str, SourceTensor]:
    return dict(open_checkpoint(FIXTURES / name).tensors)


def _config(name: str) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8")))


def _tensors(name: str) -> dict[str, SourceTensor]:
    return dict(_tensors_once(name))


def _map(config: dict[str, Any], tensors: dict[str, SourceTensor]) -> archs.MappedTensors:
    arch = archs.match(config)
    return archs.map_tensors(arch, arch.config(config), tensors)


def _keys(config: dict[str, Any]) -> dict[str, Any]:
    arch = archs.match(config)
    return {key.name: key.get(arch.config(config)) for key in arch.keys}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_missing_tensor_is_named(name: str) -> None:
    """Without any one of its tensors a checkpoint is refused by that name, but for biases that a family may lack."""
    config, tensors = _config(name), _tensors(name)
    dropped = set(_map(config, tensors).dropped)
    for lost in tensors:
        rest = {k: v for k, v in tensors.items() if k != lost}
        if lost in dropped or lost.endswith(".bias"):
            continue
        with pytest.raises(FormatError, match=re.escape(lost)):
            _map(config, rest)


@pytest.mark.parametrize("name", GOLDEN)
def test_an_unknown_tensor_is_named(name: str) -> None:
    """A tensor that fits no row, or stands in a block that is not there, is refused by its name."""
    config, tensors = _config(name), _tensors(name)
    one = next(iter(tensors.values()))
    in_block = next(k for k in tensors if re.search(r"\.0\.", k))
    for extra in ("model.surprise.weight", re.sub(r"\.0\.", ".99.", in_block, count=1)):
        with pytest.raises(UnsupportedError, match=re.escape(extra)):
            _map(config, {**tensors, extra: replace(one, name=extra)})


@pytest.mark.parametrize("name", GOLDEN)
def test_a_shape_that_config_denies_is_refused(name: str) -> None:
    """A tensor with a row or column too many, where the row tells its shape, is an error with both shapes."""
    config, tensors = _config(name), _tensors(name)
    arch = archs.match(config)
    told = [p for row in arch.rows if row.shape for p in row.patterns]
    known = [k for k in tensors if any(archs.pattern(p).fullmatch(k) for p in told)]
    assert known or not told
    for changed in known:
        shape = tensors[changed].shape
        wrong = replace(tensors[changed], shape=(shape[0] + 1, *shape[1:]))
        with pytest.raises(FormatError) as error:
            _map(config, {**tensors, changed: wrong})
        assert "expected" in str(error.value)


@pytest.mark.parametrize("name", GOLDEN)
def test_unknown_rope_scaling_is_refused(name: str) -> None:
    """A kind of rotary scaling that nobody knows is an error that says it, in either style of config.json."""
    for key in ("rope_scaling", "rope_parameters"):
        config = {k: v for k, v in _config(name).items() if k not in ("rope_scaling", "rope_parameters")}
        config[key] = {"rope_type": "banana", "rope_theta": 10000.0, "factor": 2.0}
        with pytest.raises(UnsupportedError, match="banana"):
            archs.match(config)


@pytest.mark.parametrize("name", GOLDEN)
def test_both_styles_of_config_give_the_same_keys(name: str) -> None:
    """The rotary settings of transformers 4 and those of 5 are the same thing."""
    config = _config(name)
    other = _older(config) if "rope_parameters" in config else _newer(config)
    assert other != config or "rope_theta" not in config
    assert _keys(other) == _keys(config)
    arch = archs.match(config)
    assert arch.literals(arch.config(other)) == arch.literals(arch.config(config))


def _newer(config: dict[str, Any]) -> dict[str, Any]:
    """Write rotary settings as transformers 5 does: all in rope_parameters."""
    moved = ("rope_theta", "partial_rotary_factor")
    rest = {k: v for k, v in config.items() if k not in ("rope_scaling", *moved)}
    found = {k: config[k] for k in moved if k in config}
    return {**rest, "rope_parameters": {"rope_type": "default", **found, **(config.get("rope_scaling") or {})}}


def _older(config: dict[str, Any]) -> dict[str, Any]:
    """Write rotary settings as transformers 4 did: the base beside the scaling, whose kind is its type."""
    rest = {k: v for k, v in config.items() if k != "rope_parameters"}
    rope = config["rope_parameters"]
    if "sliding_attention" in rope:
        rest["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            rest[key] = rope[key]
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor", "rope_type")}
    return {**rest, "rope_scaling": {"type": rope["rope_type"], **scaling} if scaling else None}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_lost_key_is_no_traceback(name: str) -> None:
    """Without any one key of config.json the result is a whole mapping or an error of ours."""
    config, tensors = _config(name), _tensors(name)
    for lost in config:
        some = {k: v for k, v in config.items() if k != lost}
        with contextlib.suppress(InputError):
            _keys(some)
            _map(some, tensors)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("junk", ["text", -1, [], {}, True, 10**12])
def test_junk_in_config_is_an_error_of_ours(name: str, junk: Any) -> None:
    """A value of another kind gives an error of ours or is not asked for, never a traceback from within."""
    config, tensors = _config(name), _tensors(name)
    for key in config:
        some = {**config, key: junk}
        with contextlib.suppress(InputError):
            _keys(some)
            _map(some, tensors)


@pytest.mark.parametrize("name", GOLDEN)
def test_head_follows_the_tie(name: str) -> None:
    """A tied head is left out even where it is stored; one that is not tied is needed."""
    config, tensors = _config(name), _tensors(name)
    arch = archs.match(config)
    if not any(row.source == archs.HEAD for row in arch.rows):
        return
    embeddings = {p for row in arch.rows if row.target == "token_embd.weight" for p in row.patterns}
    head = replace(next(t for k, t in tensors.items() if k in embeddings), name=archs.HEAD)
    without = {k: v for k, v in tensors.items() if k != archs.HEAD}
    allowed = arch.expect.get("tie_word_embeddings", (True, False))
    if True in allowed:
        mapped = _map({**config, "tie_word_embeddings": True}, {**without, archs.HEAD: head})
        assert archs.HEAD not in {source.name for t in mapped.tensors for source in t.view.sources}
        assert archs.HEAD in mapped.dropped
    mapped = _map({**config, "tie_word_embeddings": False}, {**without, archs.HEAD: head})
    assert "output.weight" in {t.name for t in mapped.tensors}
    with pytest.raises(FormatError, match="lm_head"):
        _map({**config, "tie_word_embeddings": False}, without)


@pytest.mark.parametrize("arch", archs.archs().values(), ids=lambda arch: arch.name)
def test_the_example_is_a_config_of_the_family(arch: archs.Arch) -> None:
    """The example finds its own architecture and has every key."""
    assert archs.match(arch.example) is arch
    assert _keys(dict(arch.example))
