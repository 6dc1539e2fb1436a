"""The small blobs around a GGUF, as literal bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.publish import ReleaseEntry
from pipeline.publish._layers import config, text_layers


def test_the_bytes_of_create(entry: Callable[..., ReleaseEntry], tmp_path: Path) -> None:
    """Order and bytes are those that `ollama create` 0.34.4 stores for the same Modelfile."""
    made = replace(entry(tmp_path / "x"), template="{{ .Prompt }}\n")
    kind = "application/vnd.ollama.image."
    assert text_layers(made) == (
        (f"{kind}template", b"{{ .Prompt }}\n"),
        (f"{kind}system", b"Be <brief> & kind."),
        (f"{kind}license", b"MIT"),
        (f"{kind}license", b"Apache-2.0"),
        (f"{kind}params", b'{"num_ctx":4096,"stop":["\\u003c|im_end|\\u003e"],"temperature":0.7}\n'),
        (
            f"{kind}messages",
            '[{"role":"user","content":"hé"},{"role":"assistant","content":"\\u003cb\\u003e"}]\n'.encode(),
        ),
    )
    assert config(made).startswith(b'{"model_format":"gguf","model_family":"qwen2"')


def test_nothing_said_is_no_layer(entry: Callable[..., ReleaseEntry], tmp_path: Path) -> None:
    """Empty texts and parameters leave no empty layers."""
    made = replace(entry(tmp_path / "x"), template="", system=None, params={}, messages=(), licenses=("",))
    assert text_layers(made) == ()
