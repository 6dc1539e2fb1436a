"""A GGUF file as MODEL."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError, UsageError
from pipeline.source import resolve


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "Qwen2.5-0.5B-Instruct"),
        ("qwen2.5-0.5b-instruct-q8_0.gguf", "qwen2.5-0.5b-instruct"),
        ("model.IQ4_XS.gguf", "model"),
        ("Llama-3-UD-Q4_K_XL.gguf", "Llama-3"),
        ("m-f16.GGUF", "m"),
        ("m-BF16.gguf", "m"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"),
        ("Q8_0-tuned.gguf", "Q8_0-tuned"),
        ("a-Q4_0-b-Q8_0.gguf", "a-Q4_0-b"),
        ("Q4_K_M.gguf", "Q4_K_M"),
        ("model.gguf", "model"),
    ],
)
def test_called_like_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str) -> None:
    """The name of the type at the end of a file's name is not part of the model's name."""
    (tmp_path / file).write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for model in (file, f"./{file}", str(tmp_path / file)):
        source = resolve(model)
        assert (source.name, source.gguf, source.folder) == (name, tmp_path / file, tmp_path)
        assert source.repository is None


def test_what_is_not_there(tmp_path: Path) -> None:
    """A path that names nothing, a folder called like a file, and a revision are refused."""
    with pytest.raises(InputError, match="is not there"):
        resolve(str(tmp_path / "x.gguf"))
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(InputError, match="is no file"):
        resolve(str(tmp_path / "d.gguf"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="no revisions"):
        resolve(str(tmp_path / "m.gguf"), revision="main")
