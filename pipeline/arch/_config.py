"""config.json as architecture rows see it: checked look-ups, and one form for the keys of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import FormatError

_KINDS: dict[type[Any], str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "an object",
}


class ModelConfig:
    """A checked view of config.json (or of the text part of a multimodal one).

    *defaults* are what transformers takes where config.json says nothing.
    """

    def __init__(self, raw: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.raw: Mapping[str, Any] = {**(defaults or {}), **{k: v for k, v in raw.items() if v is not None}}

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

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return _within("num_hidden_layers", self.need(int, "num_hidden_layers", "n_layer", "num_layers"), 1, 10_000)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return _within("hidden_size", self.need(int, "hidden_size", "n_embd", "d_model"), 1, 1 << 24)

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return _within("num_attention_heads", self.need(int, "num_attention_heads", "n_head", "num_heads"), 1, 1 << 20)

    @property
    def n_heads_kv(self) -> int:
        """Number of key/value heads; equal to the query heads where config.json does not say."""
        return _within("num_key_value_heads", self.get(int, "num_key_value_heads") or self.n_heads, 1, 1 << 20)

    @property
    def n_experts(self) -> int:
        """Number of routed experts in a block; 0 for a dense model."""
        count = self.get(int, "num_local_experts", "num_experts", "n_routed_experts") or 0
        return _within("num_experts", count, 0, 10_000)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return int(self.get(int, "head_dim") or self.width // self.n_heads)

    @property
    def is_tied(self) -> bool:
        """Whether the output matrix is the embedding matrix."""
        return bool(self.get(bool, "tie_word_embeddings"))

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary settings in the form of transformers 5: rope_type, rope_theta and the parameters of the scaling.

        transformers 4 keeps `rope_theta` beside `rope_scaling`, whose kind is called `type` or `rope_type`.
        """
        merged = dict(self.get(dict, "rope_parameters") or self.get(dict, "rope_scaling") or {})
        merged["rope_type"] = merged.get("rope_type") or merged.pop("type", None) or "default"
        if merged.get("rope_theta") is None:
            merged["rope_theta"] = self.get(float, "rope_theta")
        return merged


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise FormatError(
            "a value is out of range", where=f"config.json, key {name!r}", expected=f"{low} to {high}", found=value
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
    return float(value) if accepted == (int, float) else value
