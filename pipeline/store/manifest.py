"""The manifest of a model and its config blob, in Ollama's bytes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FormatError
from pipeline.store import gojson
from pipeline.types import Blob, Layer

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
MODEL = "application/vnd.ollama.image.model"
PROJECTOR = "application/vnd.ollama.image.projector"
TEMPLATE = "application/vnd.ollama.image.template"
SYSTEM = "application/vnd.ollama.image.system"
LICENSE = "application/vnd.ollama.image.license"
PARAMS = "application/vnd.ollama.image.params"
MESSAGES = "application/vnd.ollama.image.messages"

# A manifest names a few layers; more than this is no manifest.
MAX_BYTES = 4 << 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_THOUSAND, _MILLION, _BILLION = 10**3, 10**6, 10**9


def is_digest(text: str) -> bool:
    """Whether *text* is "sha256:" and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True)
class Manifest:
    """A config and the layers of a model (manifest/manifest.go).

    *media_type* is Docker's, as Ollama writes it, or OCI's, which other clients push and Ollama reads as well.  What
    `from_bytes` does not keep: a layer's `from` and `name`, which only Ollama's own bookkeeping uses.
    """

    config: Layer
    layers: tuple[Layer, ...]
    media_type: str = MANIFEST

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers, then the config."""
        return (*self.layers, self.config)

    @property
    def size(self) -> int:
        """Bytes of all layers and the config, as `ollama list` counts."""
        return sum(layer.blob.size for layer in self.all_layers)

    @property
    def digest(self) -> str:
        """The digest of its bytes: what a registry and `ollama list` know it by."""
        return f"sha256:{hashlib.sha256(self.to_bytes()).hexdigest()}"

    def to_bytes(self) -> bytes:
        """Encode compactly in Ollama's key order, with no newline at the end.

        `ollama push` sends these bytes too, so a model has one id in the registry and in every store.
        """
        return gojson.encode(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": _layer_json(self.config),
                "layers": [_layer_json(layer) for layer in self.layers],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: object = None) -> Manifest:
        """Read a manifest; keys that we do not know are ignored, as Ollama does.

        Raises:
            FormatError: if it is no JSON, or anything that the layers need is missing or of another form.
        """
        if len(data) > MAX_BYTES:
            raise FormatError("too large for a manifest", where=where, expected=f"{MAX_BYTES} bytes", found=len(data))
        try:
            tree = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise FormatError("a manifest that is not JSON", where=where, found=str(exc)) from exc
        if not isinstance(tree, dict) or tree.get("schemaVersion") != 2:
            raise FormatError("not a manifest of schema version 2", where=where, found=data[:80])
        layers = tree.get("layers")
        if not isinstance(layers, list) or not layers:
            raise FormatError("a manifest without layers", where=where, found=data[:80])
        # only OCI allows to leave it out; Ollama looks at none
        media_type = OCI_MANIFEST if tree.get("mediaType", OCI_MANIFEST) == OCI_MANIFEST else MANIFEST
        return cls(_layer(tree.get("config"), where), tuple(_layer(layer, where) for layer in layers), media_type)


def config_bytes(
    architecture: str,
    parameter_count: int,
    file_type: str,
    *,
    renderer: str | None = None,
    parser: str | None = None,
    requires: str | None = None,
) -> bytes:
    """Make the config blob that `ollama create` makes for a GGUF (ConfigV2, types/model/config.go).

    Args:
        architecture: general.architecture of the GGUF.
        parameter_count: number of weights.
        file_type: name of the quantization, such as "Q4_K_M".
        renderer: name of the code in Ollama that writes the prompt.
        parser: name of the code in Ollama that reads the answer.
        requires: the oldest Ollama that shall run it.
    """
    config = {
        "model_format": "gguf",
        "model_family": architecture,
        "model_families": [architecture],
        "model_type": human_number(parameter_count),
        "file_type": file_type,
    }
    named = {"renderer": renderer, "parser": parser, "requires": requires}
    return gojson.encode(config | {key: value for key, value in named.items() if value}) + b"\n"


def human_number(count: int) -> str:
    """Write a parameter count as Ollama does: 494.03M, 7B, 7.6B (format.HumanNumber)."""
    if count >= _BILLION:
        return f"{count / _BILLION:.{0 if count % _BILLION == 0 else 1}f}B"
    if count >= _MILLION:
        return f"{count / _MILLION:.{0 if count % _MILLION == 0 else 2}f}M"
    if count >= _THOUSAND:
        return f"{count / _THOUSAND:.0f}K"
    return str(count)


def _layer_json(layer: Layer) -> dict[str, Any]:
    return {"mediaType": layer.media_type, "digest": layer.blob.digest, "size": layer.blob.size}


def _layer(tree: Any, where: object) -> Layer:
    if not isinstance(tree, dict):
        raise FormatError("a layer that is no object", where=where, found=repr(tree)[:80])
    media_type, digest, size = tree.get("mediaType"), tree.get("digest"), tree.get("size")
    if not isinstance(media_type, str):
        raise FormatError("a layer without mediaType", where=where, found=repr(media_type)[:80])
    if not isinstance(digest, str) or not is_digest(digest):
        raise FormatError(
            "a layer's digest", where=where, expected="sha256: and 64 hex digits", found=repr(digest)[:80]
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise FormatError("a layer's size", where=where, expected="a number of bytes", found=repr(size)[:80])
    return Layer(media_type, Blob(digest, size))
