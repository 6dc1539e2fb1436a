"""The pin is complete, and its key keeps builds apart that must not be mixed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import FormatError
from pipeline.runtime import pin as pin_module
from pipeline.runtime.pin import read_pin


def test_the_shipped_pin_names_one_package_exactly() -> None:
    """Checksum and commit are whole, no fused multiply-add is made of two operations, and there is no AMX path."""
    pin = read_pin()
    assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
    assert re.fullmatch(r"[0-9a-f]{40}", pin.commit)
    assert pin.version in pin.file
    assert {"CMAKE_C_FLAGS=-ffp-contract=off", "CMAKE_CXX_FLAGS=-ffp-contract=off -U__AMX_INT8__"} <= set(pin.options)
    assert {"ggml", "llama", "llama-server", "llama-quantize"} <= set(pin.targets)


def test_the_key_changes_with_what_changes_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other options, another package or another CPU get a folder of their own; the same ones the same."""
    pin = read_pin()
    monkeypatch.setattr(pin_module, "cpu_features", lambda: ("avx2",))
    here = pin.key
    assert pin.key == here
    assert replace(pin, options=(*pin.options, "GGML_OPENMP=OFF")).key != here
    assert replace(pin, sha256="0" * 64).key != here
    monkeypatch.setattr(pin_module, "cpu_features", lambda: ("avx2", "avx512f"))
    assert pin.key != here


def test_cpu_features_are_instruction_sets_only() -> None:
    """Flags that come and go with kernels do not move the key; instruction sets do; order does not."""
    first = "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma amx_int8 md_clear\n\nprocessor\t: 1\nflags\t\t: sse\n"
    second = "flags\t\t: amx_int8 fma avx2 sse4_2 fpu flush_l1d hypervisor\n"
    assert pin_module._features_of(first) == ("amx_int8", "avx2", "fma", "sse4_2")
    assert pin_module._features_of(second) == pin_module._features_of(first)
    assert pin_module._features_of("Features\t: fp asimd sve2\n") == ("asimd", "fp", "sve2")
    assert pin_module._features_of("") == ()


def test_everything_lives_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_CACHE_HOME moves download, sources and build together."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pin = read_pin()
    for path in (pin.download, pin.source, pin.install, pin.work):
        assert path.is_relative_to(tmp_path / "gguf-pipeline" / "llama.cpp")


@pytest.mark.parametrize(("text", "what"), [("not toml [", "not a TOML file"), ("[package]\n", "is missing")])
def test_a_broken_pin_says_what_is_wrong(tmp_path: Path, text: str, what: str) -> None:
    """A damaged pin.toml is a format error that names the file."""
    path = tmp_path / "pin.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=what):
        read_pin(path)
