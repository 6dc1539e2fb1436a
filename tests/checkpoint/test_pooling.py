"""What modules.json and the folder it names say about pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint._pooling import read_pooling
from pipeline.errors import FormatError, UnsupportedError

TYPES = "sentence_transformers.models."


def _write(folder: Path, pooling: dict[str, Any] | None, *modules: dict[str, Any]) -> Path:
    named = modules or ({"type": f"{TYPES}Transformer", "path": ""}, {"type": f"{TYPES}Pooling", "path": "1_Pooling"})
    (folder / "modules.json").write_text(json.dumps(named))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_each_kind_that_the_engine_has_is_read(config: dict[str, Any], mode: str, tmp_path: Path) -> None:
    """Both forms of the file give the kind."""
    assert read_pooling(_write(tmp_path, config)) == mode


def test_nothing_said_is_nothing(tmp_path: Path) -> None:
    """Without modules.json, or without a pooling in it, there is none."""
    assert read_pooling(tmp_path) is None
    assert read_pooling(_write(tmp_path, None, {"type": f"{TYPES}Transformer", "path": ""})) is None


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode": "weightedmean"},
        {},
    ],
)
def test_other_kinds_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    """A kind that the engine lacks, and several at once, are refused."""
    with pytest.raises(UnsupportedError, match="kind of pooling"):
        read_pooling(_write(tmp_path, config))


def test_modules_that_change_the_vector_are_refused(tmp_path: Path) -> None:
    """A dense layer after the pooling is refused; normalization is not."""
    pooling = {"type": f"{TYPES}Pooling", "path": "1_Pooling"}
    _write(tmp_path, {"pooling_mode": "mean"}, pooling, {"type": f"{TYPES}Normalize", "path": "2_Normalize"})
    assert read_pooling(tmp_path) == "mean"
    with pytest.raises(UnsupportedError, match="Dense"):
        read_pooling(_write(tmp_path, None, pooling, {"type": f"{TYPES}Dense", "path": "2_Dense"}))


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc", "", "a/b", None, "..", 7])
def test_a_path_out_of_the_folder_is_refused(path: Any, tmp_path: Path) -> None:
    """modules.json cannot name a file elsewhere."""
    with pytest.raises(FormatError, match="where the pooling is"):
        read_pooling(_write(tmp_path, None, {"type": f"{TYPES}Pooling", "path": path}))


@pytest.mark.parametrize("text", ["{}", "[1]", "[", "[" * 100_000])
def test_a_broken_file_is_an_error_of_ours(text: str, tmp_path: Path) -> None:
    """What is not a list of modules is refused."""
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(FormatError, match=r"modules\.json"):
        read_pooling(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    """A pooling whose file is not there is an error that names it."""
    with pytest.raises(FormatError, match="1_Pooling"):
        read_pooling(_write(tmp_path, None))
