"""The Python bindings of the pinned package work with the libraries that are built already."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.runtime.bindings import install_bindings, installed_bindings
from pipeline.runtime.llama import LlamaInstall
from pipeline.runtime.pin import Pin, read_pin

_TOKENIZE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], vocab_only=True, verbose=False)
print(model.tokenize(b"Hello world"))
model.close()
"""


@pytest.mark.native
def test_the_bindings_load_the_built_libraries(llama: LlamaInstall) -> None:
    """A vocabulary of llama.cpp's own tree tokenizes through them."""
    if installed_bindings() != read_pin().version:
        pytest.skip("the bindings are not installed: make llama")
    assert llama.source_dir is not None
    done = subprocess.run(
        [sys.executable, "-c", _TOKENIZE, llama.source_dir / "models" / "ggml-vocab-qwen2.gguf"],
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(llama.lib_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[9707, 1879]", done.stderr


def test_installed_bindings_are_left_alone(stand_in: Pin) -> None:
    """When the pinned version is installed, nothing is fetched and pip is not asked."""
    have = installed_bindings()
    if have is None:
        pytest.skip("the bindings are not installed")
    lines: list[str] = []
    install_bindings(lines.append, Pin(**{**vars(stand_in), "version": have}))
    assert lines == []
    assert not stand_in.download.exists()
