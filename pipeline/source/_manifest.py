"""Which files of a repository a conversion needs, and what the Hub says of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import UnsupportedError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_INDEXES = (INDEX, PICKLE_INDEX)
_WEIGHTS = (".safetensors", ".bin")
_MAX_INDEX = 100_000_000

# Everything but weights that a conversion, a Modelfile or a licence may need, at the top of the repository.
_NEEDED = (
    CONFIG, "generation_config.json", "tokenizer*.json", "tokenizer*.model", "spiece.model", "sentencepiece*.model",
    "*.tiktoken", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jin*", "chat_template.json", "modules.json", "README.md",
    "config_sentence_transformers.json", "sentence_*_config.json",
    "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
# And in folders: more templates, and how an embedding model pools.
_NEEDED_DEEPER = ("additional_chat_templates/*.jinja", "*_Pooling/config.json")


@dataclass(frozen=True)
class RemoteFile:
    """One file at one commit, as the Hub lists it.

    *size* is in bytes; *etag* is the content's sha256 (files in LFS) or its git blob id (all others); either is None
    where the Hub does not say.
    """

    name: str
    size: int | None
    etag: str | None

    @property
    def is_weights(self) -> bool:
        """Whether this is a file of weights: large, and not needed for a plan."""
        return self.name.endswith(_WEIGHTS)


@dataclass(frozen=True)
class Manifest:
    """The files that are needed of one commit of a repository."""

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


def choose_files(names: Iterable[str], repo: str) -> list[str]:
    """Choose from a repository's file *names* what a conversion needs; an index stands for its shards.

    `model.safetensors` comes before an index, and an index before loose files; pickle files (`.bin`) come only where
    there is no safetensors file at all.

    Raises:
        UnsupportedError: if there is no config.json or no weights among them.
    """
    names = [n for n in names if n.isprintable()]
    top = [n for n in names if "/" not in n]
    weights = _choose_weights(top)
    if CONFIG not in top or not weights:
        raise UnsupportedError(
            "the repository holds no checkpoint that is read here",
            where=repo,
            expected=f"{CONFIG} and *.safetensors",
            found=", ".join(top[:12]) or "no files",
            hint=_other_format(top),
        )
    deeper = [n for n in names if n.count("/") == 1 and any(fnmatchcase(n, p) for p in _NEEDED_DEEPER)]
    return [n for n in top if any(fnmatchcase(n, p) for p in _NEEDED)] + deeper + weights


def _choose_weights(top: list[str]) -> list[str]:
    for name in (SINGLE, INDEX):
        if name in top:
            return [name]
    loose = [n for n in top if n.endswith(".safetensors") and not n.startswith("adapter")]
    if loose:
        return loose
    for name in (PICKLE, PICKLE_INDEX):
        if name in top:
            return [name]
    return [n for n in top if fnmatchcase(n, "pytorch_model*.bin")]


def _other_format(names: list[str]) -> str:
    if "adapter_config.json" in names:
        return "this is an adapter (LoRA): download it and name its folder with --adapter, and its base model as MODEL"
    if any(n.endswith(".gguf") for n in names):
        return "this repository is already GGUF: Ollama pulls it as hf.co/org/name; or name the original repository"
    if any(n.endswith((".bin", ".pt", ".pth")) for n in names):
        return "only pytorch_model.bin is read of pickles: try its safetensors revision, often @refs/pr/1"
    return "name the repository of the original weights"


def index_of(names: Iterable[str]) -> str | None:
    """Return the index among *names*, the chosen files, if the weights come in shards."""
    return next((n for n in names if n in _INDEXES), None)


def read_shards(index: Path) -> set[str]:
    """List the shards that *index* names, files beside it; none if it is broken, which its strict reader will say."""
    try:
        if index.stat().st_size > _MAX_INDEX:
            return set()
        found = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return set()
    return {n for n in found if n.endswith(_WEIGHTS) and "/" not in n and n.isprintable()}


def has_weights(folder: Path) -> bool:
    """Say whether all weights are in *folder*: one file, or an index and every shard that it names."""
    for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX):
        if (folder / name).exists():
            return name not in _INDEXES or all((folder / shard).exists() for shard in read_shards(folder / name))
    return any(folder.glob("*.safetensors"))
