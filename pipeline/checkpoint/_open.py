"""Open a checkpoint folder: config.json, generation_config.json, licences, and the tensors' headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.checkpoint._index import collect
from pipeline.checkpoint._pooling import read_pooling
from pipeline.checkpoint._sentence import SentenceFacts, read_sentence_facts
from pipeline.errors import FormatError, InputError
from pipeline.strict_json import has_file, json_type, read_bytes, read_json
from pipeline.types import FileHead, SourceTensor

_MAX_CONFIG = 10_000_000
_MAX_LICENSE = 1_000_000
_LICENSE_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint, as its headers tell it; no weight has been read.

    *tensors* are in the order of their names; *generation_config* is empty where the file is missing.  *adapted* names
    the tensors that an adapter changes (lora.py), *notes* say what a person should know.
    """

    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, SourceTensor]
    adapted: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def n_parameters(self) -> int:
        """Number of elements over all tensors."""
        return sum(math.prod(t.shape) for t in self.tensors.values())

    @property
    def n_bytes(self) -> int:
        """Size of all tensors' data in bytes."""
        return sum(t.n_bytes for t in self.tensors.values())

    def text_config(self) -> Mapping[str, Any]:
        """Return the language model's part of the config: `text_config` where it is nested, else all of it."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    def pooling(self) -> str | None:
        """Return how an embedding model pools its vectors: "mean", "cls", "last", or None; see `read_pooling`."""
        return read_pooling(self.folder)

    def sentence_facts(self) -> SentenceFacts:
        """Return what is said beside an embedding model for its users; see `read_sentence_facts`."""
        return read_sentence_facts(self.folder)

    def licenses(self) -> tuple[str, ...]:
        """Return the texts of the licence files (LICENSE*, COPYING*, NOTICE* ...), in the order of their names.

        Raises:
            FormatError: if one is larger than 1 MB.
        """
        paths = sorted(p for p in self.folder.iterdir() if p.name.upper().startswith(_LICENSE_NAMES) and not p.is_dir())
        return tuple(_license_text(p) for p in paths)


def open_checkpoint(folder: Path, remote_headers: Mapping[Path, FileHead] = MappingProxyType({})) -> Checkpoint:
    """Open the checkpoint in *folder*: its JSON files and the headers of its weights.

    A safetensors file that is not there yet is known by its header in *remote_headers*, by the path where it will be.

    Raises:
        InputError: if *folder* is no folder.
        FormatError: if a file is missing, broken, or contradicts another.
        UnsupportedError: if the weights are neither safetensors nor a pytorch_model.bin.
    """
    if not folder.is_dir():
        raise InputError("is not a folder", where=folder, expected="a checkpoint: config.json and *.safetensors")
    config = _config(folder / "config.json")
    generation = folder / "generation_config.json"
    return Checkpoint(
        folder=folder,
        config=config,
        generation_config=read_json(generation, _MAX_CONFIG) if has_file(generation) else {},
        tensors=MappingProxyType(collect(folder, remote_headers)),
    )


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FormatError(
            "has no config.json", where=path.parent, hint="name the folder that holds config.json and *.safetensors"
        )
    config = read_json(path, _MAX_CONFIG)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise FormatError(
            "does not say which architecture this is",
            where=path,
            expected='"architectures": ["...ForCausalLM"]',
            found=json_type(names) if "architectures" in config else "no such key",
            hint="take config.json from the repository of the model",
        )
    return config


def _license_text(path: Path) -> str:
    # Licences are prose; one stray Latin-1 byte must not stop a model.
    return read_bytes(path, _MAX_LICENSE).decode("utf-8", errors="replace")
