"""Warnings that several architectures give: what the engine does otherwise, and a user should know."""

from __future__ import annotations

from pipeline.arch._config import ModelConfig
from pipeline.arch._rope import unscaled_context


def ignored_window(config: ModelConfig) -> tuple[str, ...]:
    """Warn of sliding-window attention that llama.cpp computes as full attention."""
    window = config.get(int, "sliding_window")
    is_off = config.get(bool, "use_sliding_window") is False or set(config.layer_types) == {"full_attention"}
    if not window or is_off or window >= config.need(int, "max_position_embeddings"):
        return ()
    return (
        f"config.json asks for sliding-window attention over {window} tokens, which llama.cpp does not do for this "
        "architecture: answers may differ beyond the window",
    )


def dynamic_scaling(config: ModelConfig) -> tuple[str, ...]:
    """Warn of dynamic rotary scaling, which llama.cpp lacks, and which plays no part in texts of the usual length."""
    context = unscaled_context(config)
    if context is None:
        return ()
    return (f"llama.cpp has no dynamic rope scaling: the context ends after {context:,} tokens, where it would begin",)
