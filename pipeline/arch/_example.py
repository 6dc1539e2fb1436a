"""Small config.json files, one for each architecture's `example`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def decoder(name: str, **more: Any) -> Mapping[str, Any]:
    """Make a config of the class *name* with two blocks; *more* are keys of the family's own."""
    return {
        "architectures": [name],
        "vocab_size": 448,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        **more,
    }
