"""llama.cpp is found where the user says, else where it was built, and never half."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ToolError, UsageError
from pipeline.runtime.llama import (
    ENVIRONMENT,
    LIBRARY_SUFFIX,
    LlamaInstall,
    find_llama,
    require_llama,
)
from pipeline.runtime.pin import read_pin


def _program(path: Path, answer: str = "version: 1 (1234567)") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is built, nothing is named."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def _build(with_marker: bool = True) -> Path:
    pin = read_pin()
    _program(pin.install / "bin" / "llama-server")
    if with_marker:
        (pin.install / "install.json").write_text("{}")
    return pin.install / "bin"


@pytest.mark.usefixtures("empty_cache")
def test_nothing_built_is_nothing_found() -> None:
    """Without a build there is no guess, and whoever needs one is told how to get it."""
    assert find_llama() is None
    with pytest.raises(ToolError, match="make llama"):
        require_llama()


@pytest.mark.usefixtures("empty_cache")
def test_the_cache_is_found_only_when_it_is_whole() -> None:
    """A folder without its marker does not count."""
    bin_dir = _build(with_marker=False)
    assert find_llama() is None
    _build()
    found = require_llama()
    assert (found.kind, found.bin_dir, found.source_dir) == ("vendored", bin_dir, None)
    assert read_pin().short_commit in found.label


def test_the_named_folder_wins(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GGUF_PIPELINE_LLAMA beats the build in the cache, and its version is the program's own answer."""
    _build()
    program = _program(empty_cache / "own" / "bin" / "llama-server")
    monkeypatch.setenv(ENVIRONMENT, str(program.parent))
    found = require_llama()
    assert (found.kind, found.bin_dir, found.lib_dir) == ("env", program.parent, program.parent)
    assert found.version == "1234567"
    assert found.program("llama-server") == program


def test_a_named_installation_has_its_libraries_beside_bin(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed llama.cpp keeps libraries in lib/ next to bin/."""
    program = _program(empty_cache / "own" / "bin" / "llama-quantize")
    library = empty_cache / "own" / "lib" / f"libllama{LIBRARY_SUFFIX}"
    library.parent.mkdir()
    library.write_bytes(b"")
    monkeypatch.setenv(ENVIRONMENT, str(program.parent))
    assert require_llama().library("llama") == library


def test_a_named_build_tree_tells_its_sources(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source folder comes from CMake's own record."""
    program = _program(empty_cache / "build" / "bin" / "llama-server")
    source = empty_cache / "llama.cpp"
    source.mkdir()
    (empty_cache / "build" / "CMakeCache.txt").write_text(f"# x\nCMAKE_HOME_DIRECTORY:INTERNAL={source}\n")
    monkeypatch.setenv(ENVIRONMENT, str(program.parent))
    assert require_llama().source_dir == source


@pytest.mark.parametrize("make", [False, True], ids=["no folder", "empty folder"])
def test_a_wrong_named_folder_is_an_error(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, make: bool) -> None:
    """A folder without llama.cpp's programs is a wrong setting, never a silent fall-back to another build."""
    _build()
    folder = empty_cache / "wrong"
    if make:
        folder.mkdir()
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    with pytest.raises(UsageError, match=ENVIRONMENT):
        find_llama()


@pytest.mark.usefixtures("empty_cache")
def test_a_missing_program_or_library_names_the_next_step() -> None:
    """What a build lacks is an error with `make llama` in it."""
    _build()
    found = require_llama()
    with pytest.raises(ToolError, match="make llama"):
        found.program("llama-nothing")
    with pytest.raises(ToolError, match="make llama"):
        found.library("nothing")


@pytest.mark.native
def test_the_built_llama_is_the_pinned_one(llama: LlamaInstall) -> None:
    """The oracle of all tests is the commit that the pin names, with its sources at hand."""
    pin = read_pin()
    answer = subprocess.run([llama.program("llama-server"), "--version"], capture_output=True, text=True, check=True)
    assert pin.short_commit in answer.stdout + answer.stderr
    for name in ("ggml", "ggml-base", "ggml-cpu", "llama"):
        assert llama.library(name).exists()
    for target in pin.targets:
        if target.startswith("llama-"):
            assert llama.program(target).exists()
    assert llama.source_dir is not None
    for needed in (
        "convert_hf_to_gguf.py",
        "conversion",
        "gguf-py",
        "models/templates",
        "models/ggml-vocab-qwen2.gguf",
    ):
        assert (llama.source_dir / needed).exists()
