"""What `run` takes from a publication, which anybody with the token may have pushed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.chat import find_target
from pipeline.cli import main
from pipeline.errors import FormatError, InputError
from pipeline.store import Name, Store
from pipeline.store.manifest import MESSAGES, PARAMS, SYSTEM
from pipeline.types import Layer

NAME = Name.parse("demo:Q8_0")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The demo with a system prompt and messages."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    layers = ("--system", "Be brief.", "--message", "user", "Hi <b>", "--message", "assistant", "Hello")
    done = CliRunner().invoke(
        main, ["publish", "demo", "--quant", "Q8_0", *layers, "--proof", "none", "--errors", "none"]
    )
    assert done.exit_code == 0, done.output
    return Store(tmp_path / "registry")


def test_the_prompt_and_the_parameters_of_a_publication(store: Store) -> None:
    """They are what was published."""
    target = find_target("demo:Q8_0")
    assert (target.gguf, target.system) == (store.model_path(NAME), "Be brief.")
    assert target.parameters["top_k"] == 1
    said = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello"}]
    assert target.beginning() == [{"role": "system", "content": "Be brief."}, *said]
    assert target.beginning("Rhyme.") == [*said, {"role": "system", "content": "Rhyme."}]


def test_a_split_model(tmp_path: Path) -> None:
    """Any part stands for all of them; a missing one is named before llama.cpp looks for it."""
    done = CliRunner().invoke(main, ["convert", "demo", "-o", str(tmp_path / "demo.gguf"), "--split-size", "2M"])
    assert done.exit_code == 0, done.output
    first, second, *_ = sorted(tmp_path.glob("demo-*.gguf"))
    assert find_target(str(second)).gguf == first
    second.unlink()
    with pytest.raises(InputError, match=r"(?s)demo-00002-of-.*missing"):
        find_target(str(first))


@pytest.mark.parametrize("model", ["bert", "nomic_bert"])
def test_an_embedding_model(model: str, repository: Path, tmp_path: Path) -> None:
    """It is refused before llama.cpp, whose server would end in a crash, sees it."""
    gguf = tmp_path / "model.gguf"
    source = repository / "tests/fixtures/arch" / model
    assert CliRunner().invoke(main, ["convert", str(source), "-o", str(gguf)]).exit_code == 0
    done = CliRunner().invoke(main, ["run", str(gguf), "hi"])
    assert (done.exit_code, "an embedding model makes vectors" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (PARAMS, b"{"),
        (PARAMS, b"[]"),
        (PARAMS, b'{"num_ctx": "much"}'),
        (PARAMS, b"\xff"),
        (SYSTEM, b"\xff"),
        (MESSAGES, b'{"role": "user", "content": ""}'),
        (MESSAGES, b'["x"]'),
        (MESSAGES, b'[{"role": "user"}]'),
        (MESSAGES, b'[{"role": "user", "content": 3}]'),
        (MESSAGES, b"[" * 10000),
    ],
)
def test_layers_that_are_none(kind: str, content: bytes, store: Store) -> None:
    """Whatever is in a layer, the answer is an error that names its file."""
    manifest = store.read_manifest(NAME)
    blob = store.add_bytes(content)
    layers = tuple(Layer(kind, blob) if layer.media_type == kind else layer for layer in manifest.layers)
    store.write_manifest(NAME, replace(manifest, layers=layers))
    with pytest.raises(FormatError, match=blob.digest.removeprefix("sha256:")):
        find_target("demo:Q8_0")
