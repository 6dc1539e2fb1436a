"""Manifests and config blobs, as literal bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import FormatError
from pipeline.store import Manifest, config_bytes, human_number
from pipeline.store.manifest import CONFIG, MODEL, PARAMS
from pipeline.types import Blob, Layer

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
MANIFEST = Manifest(Layer(CONFIG, Blob(C, 113)), (Layer(MODEL, Blob(A, 857)), Layer(PARAMS, Blob(B, 30))))
BYTES = (
    '{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
    f'"config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{C}","size":113}},'
    f'"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"{A}","size":857}},'
    f'{{"mediaType":"application/vnd.ollama.image.params","digest":"{B}","size":30}}]}}'
).encode()


def test_the_bytes() -> None:
    """A manifest is compact, in Ollama's key order, without a newline."""
    assert MANIFEST.to_bytes() == BYTES


def test_round_trip() -> None:
    """What we write we read."""
    assert Manifest.from_bytes(BYTES) == MANIFEST
    assert MANIFEST.size == 1000


def test_ollamas_own_manifests_are_read() -> None:
    """The keys `from` and `name`, other orders, and the newline of `ollama create` do no harm."""
    tree = json.loads(BYTES)
    tree["layers"][0]["from"] = "demo.gguf"
    assert Manifest.from_bytes(json.dumps(dict(reversed(tree.items())), indent=2).encode() + b"\n") == MANIFEST


def _changed(**changes: object) -> bytes:
    tree = json.loads(BYTES)
    layer = tree["layers"][0]
    for key, value in changes.items():
        (layer if key in layer else tree)[key] = value
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff{}",
        BYTES[:-1],
        b"[" * 100_000,
        _changed(schemaVersion=1),
        _changed(layers=[]),
        _changed(layers={}),
        _changed(layers=["x"]),
        _changed(config=None),
        _changed(digest=""),
        _changed(digest=A.upper()),
        _changed(digest="sha256:../../etc/passwd"),
        _changed(digest=A + "\n"),
        _changed(size=-1),
        _changed(size=1.5),
        _changed(size=True),
        _changed(size="1"),
        BYTES + b" " * (4 << 20),
    ],
)
def test_bad_manifests_are_refused(data: bytes) -> None:
    """Nothing that lacks a layer, a digest or a size passes."""
    with pytest.raises(FormatError):
        Manifest.from_bytes(data)


@given(st.binary())
def test_noise_is_refused(data: bytes) -> None:
    """Random bytes give one kind of error only."""
    with pytest.raises(FormatError):
        Manifest.from_bytes(data)


def test_the_config() -> None:
    """The config of the demo is, byte for byte, what `ollama create` 0.34.4 writes for it."""
    assert config_bytes("qwen2", 2_622_208, "F16") == (
        b'{"model_format":"gguf","model_family":"qwen2","model_families":["qwen2"],'
        b'"model_type":"2.62M","file_type":"F16"}\n'
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (1500, "2K"),
        (999_999, "1000K"),
        (10**6, "1M"),
        (494_032_768, "494.03M"),
        (500_550_000, "500.55M"),
        (999_999_999, "1000.00M"),
        (10**9, "1B"),
        (7 * 10**9, "7B"),
        (2_850_000_000, "2.9B"),
        (7_615_616_512, "7.6B"),
        (10**12, "1000B"),
    ],
)
def test_parameter_counts(count: int, text: str) -> None:
    """Counts read as Ollama writes them: whole numbers bare, else one decimal of billions or two of millions."""
    assert human_number(count) == text
