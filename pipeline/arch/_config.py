"""config.json as architecture rows see it: checked look-ups, and one form for the keys of transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.errors import FormatError

_KINDS: dict[type[Any], str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


# What llama.cpp has room for (LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS in llama-hparams.h).
MAX_LAYERS = 512
MAX_EXPERTS = 1024


class ModelConfig:
    """A checked view of config.json (or of the text part of a multimodal one).

    *pooling* is how an embedding model makes one vector of many, which stands in a file of its own.
    """

    def __init__(self, raw: Mapping[str, Any], pooling: str | None = None) -> None:
        self.raw = dict(raw)
        self.pooling = pooling

    def get(self, kind: type[Any], *names: str) -> Any:
        """Return the first of *names* that is there and not null, as *kind*; None if there is none.

        Raises:
            FormatError: if the value is not of that kind.
        """
        for name in names:
            value = self.raw.get(name)
            if value is not None:
                return _checked(kind, name, value)
        return None

    def need(self, kind: type[Any], *names: str) -> Any:
        """Return what `get` returns, but refuse an absence."""
        value = self.get(kind, *names)
        if value is None:
            raise FormatError(
                "a key that this architecture needs is missing",
                where=f"config.json, key {names[0]!r}",
                expected=_KINDS[kind],
                found="nothing",
                hint="is config.json the one that belongs to these weights?",
            )
        return value

    def within(self, low: int, high: int, *names: str) -> int:
        """Return a required whole number from *low* to *high*.

        Raises:
            FormatError: if there is none, or another one.
        """
        return _within(names[0], self.need(int, *names), low, high)

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return _within(
            "num_hidden_layers", self.need(int, "num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1, MAX_LAYERS
        )

    @property
    def extra_layers(self) -> range:
        """Numbers of the layers after the last one, which predict further tokens."""
        n = _within("num_nextn_predict_layers", self.get(int, "num_nextn_predict_layers") or 0, 0, 100)
        return range(self.n_layers, self.n_layers + n)

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return _within(
            "num_attention_heads", self.need(int, "num_attention_heads", "n_head", "n_heads", "num_heads"), 1, 1 << 20
        )

    @property
    def n_heads_kv(self) -> int:
        """Number of key/value heads; equal to the query heads where config.json does not say."""
        return _within("num_key_value_heads", self.get(int, "num_key_value_heads") or self.n_heads, 1, 1 << 20)

    @property
    def n_experts(self) -> int:
        """Number of routed experts in a block; 0 for a dense model."""
        count = self.get(int, "num_local_experts", "num_experts", "n_routed_experts") or 0
        return _within("num_experts", count, 0, MAX_EXPERTS)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return _within("head_dim", self.get(int, "head_dim") or self.width // self.n_heads, 1, 1 << 20)

    @property
    def n_vocab(self) -> int:
        """Number of rows of the embedding; some may have no token."""
        return _within("vocab_size", self.need(int, "vocab_size"), 1, 1 << 24)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return _within("hidden_size", self.need(int, "hidden_size", "n_embd", "n_embed", "dim", "d_model"), 1, 1 << 20)

    @property
    def width_q(self) -> int:
        """Width of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def width_kv(self) -> int:
        """Width of all key heads; value heads have the same."""
        return self.n_heads_kv * self.head_dim

    @property
    def width_ffn(self) -> int:
        """Inner width of the feed-forward network of a dense block."""
        ratio = self.get(int, "expansion_ratio")  # of MPT, and the default of older families
        found = self.get(int, "intermediate_size", "n_inner", "hidden_dim", "ffn_hidden_size", "d_ff") or (
            ratio and ratio * self.width
        )
        return _within("intermediate_size", found or self.need(int, "intermediate_size"), 1, 1 << 24)

    @property
    def width_expert(self) -> int:
        """Inner width of one expert."""
        return _within("moe_intermediate_size", self.get(int, "moe_intermediate_size") or self.width_ffn, 1, 1 << 24)

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embedding matrix."""
        return bool(self.get(bool, "tie_word_embeddings"))

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary settings in the form of transformers 5: rope_type, rope_theta and the parameters of the scaling.

        transformers 4 keeps `rope_theta` beside `rope_scaling`, whose kind is called `type` or `rope_type`.  Of several
        settings for several kinds of attention, these are those of full attention.

        Raises:
            FormatError: if both `rope_parameters` and `rope_scaling` are there and say different things: transformers 4
                and 5 would then compute different models.
        """
        parameters = self.get(dict, "rope_parameters") or {}
        scaling = self.get(dict, "rope_scaling") or {}
        full = ModelConfig(parameters).get(dict, "full_attention")
        if not (parameters and scaling):
            return self._standard_rope(
                full or parameters or ModelConfig(scaling).get(dict, "full_attention") or scaling
            )
        # Like `convert_rope_params_to_dict` in transformers 5: rope_scaling wins, or completes full attention.
        kept = self._standard_rope(full or parameters)
        taken = self._standard_rope({**(full or {}), **scaling})
        differing = sorted(key for key in kept | taken if kept.get(key) != taken.get(key))
        if differing:
            raise FormatError(
                "rope_parameters and rope_scaling contradict each other",
                where=f"config.json, keys 'rope_parameters' and 'rope_scaling', {differing[0]!r}",
                expected="one of them, or the same in both",
                found=f"{kept.get(differing[0])!r:.80} and {taken.get(differing[0])!r:.80}",
                hint="transformers 5 takes rope_scaling, transformers 4 knows nothing else: keep what the model was "
                "trained with",
            )
        return taken

    def _standard_rope(self, found: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(found)
        older = merged.pop("type", None)
        merged["rope_type"] = merged.get("rope_type") or older or "default"
        for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
            if merged.get(key) is None:
                merged[key] = self.raw.get(key)
        return merged

    @property
    def width_rope(self) -> int:
        """Number of elements of a head that rotate."""
        share = ModelConfig(self.rope).get(float, "partial_rotary_factor")
        return int(self.head_dim * (1.0 if share is None else share))

    @property
    def rope_local(self) -> dict[str, Any]:
        """Rotary settings of sliding-window layers, in the same form; their base is None where they have no own."""
        found = ModelConfig(self.get(dict, "rope_parameters") or {}).get(dict, "sliding_attention")
        local = dict(found or {"rope_theta": self.get(float, "rope_local_base_freq")})
        return {"rope_type": "default", **local}

    @property
    def layer_types(self) -> list[str]:
        """The kind of attention of each layer ("full_attention" or "sliding_attention"); empty if not said."""
        kinds = self.get(list, "layer_types") or []
        if kinds and len(kinds) != self.n_layers:
            raise FormatError(
                "layer_types does not suit num_hidden_layers",
                where='config.json, key "layer_types"',
                expected=f"{self.n_layers} entries",
                found=len(kinds),
            )
        return list(map(str, kinds))


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise FormatError(
            "a value is out of range",
            where=f"config.json, key {name!r}",
            expected=f"{low} to {high}",
            found=repr(value)[:80],
        )
    return value


def _checked(kind: type[Any], name: str, value: Any) -> Any:
    accepted: tuple[type[Any], ...] = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(
            "a value has the wrong type",
            where=f"config.json, key {name!r}",
            expected=_KINDS[kind],
            found=repr(value)[:80],
        )
    return _finite(name, value) if accepted == (int, float) else value


def _finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:  # a whole number of some hundred digits
        number = math.inf
    if not math.isfinite(number):
        raise FormatError(
            "a value is not a finite number",
            where=f"config.json, key {name!r}",
            expected="a finite number",
            found=repr(value)[:80],
        )
    return number
