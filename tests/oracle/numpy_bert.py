"""BERT's forward pass in plain NumPy (float64), as transformers' modeling_bert and sentence-transformers describe it.

The reference for embedding models: checked itself against vectors that transformers gave, then used where there are
none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = np.ndarray
_erf = np.vectorize(math.erf)


class Bert:
    """An encoder of BERT's layout in *folder*, its tokenizer, and how it pools.

    *max_tokens* is where a text is cut, the two special tokens included.
    """

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        named = load_file(folder / "model.safetensors").items()
        prefixes = ("bert.", "roberta.")
        self._weights = {
            name.removeprefix(prefixes[0]).removeprefix(prefixes[1]): value.astype(np.float64) for name, value in named
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        lengths = folder / "sentence_bert_config.json"
        self.max_tokens = json.loads(lengths.read_text())["max_seq_length"] if lengths.exists() else None
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        self._pool: Callable[[Array], Array] = (
            (lambda states: states.mean(0)) if pooling["pooling_mode_mean_tokens"] else (lambda states: states[0])
        )

    def embed(self, text: str) -> Array:
        """Return the vector of *text*, of length 1."""
        if self.max_tokens:
            self._tokenizer.enable_truncation(self.max_tokens)
        return self.pooled(self._tokenizer.encode(text).ids, unit=True)

    def pooled(self, ids: Sequence[int] | Array, *, unit: bool = False) -> Array:
        """Return the vector of token *ids*."""
        vector = self._pool(self.states(np.asarray(ids)))
        return np.asarray(vector / np.linalg.norm(vector) if unit else vector)

    def states(self, ids: Array) -> Array:
        """Return the last hidden states (n_tok, width)."""
        config, w = self.config, self._weights
        first = config["pad_token_id"] + 1 if "oberta" in config["model_type"] else 0
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][first + np.arange(len(ids))]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for bid in range(config["num_hidden_layers"]):
            x = self._layer(x, f"encoder.layer.{bid}.")
        return x

    def _layer(self, x: Array, name: str) -> Array:
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self._dense(x, f"{name}attention.self.{part}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        attended = ((weight / weight.sum(-1, keepdims=True)) @ v).swapaxes(0, 1).reshape(x.shape)
        x = self._norm(x + self._dense(attended, f"{name}attention.output.dense"), f"{name}attention.output.LayerNorm")
        inner = self._dense(x, f"{name}intermediate.dense")
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        return self._norm(x + self._dense(inner, f"{name}output.dense"), f"{name}output.LayerNorm")

    def _dense(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return np.asarray(scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])
