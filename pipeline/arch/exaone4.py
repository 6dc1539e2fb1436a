"""EXAONE 4: norms after attention and feed-forward, and on each query and key head; the 32B has sliding windows."""

from dataclasses import replace

from pipeline.arch._base import Arch, Key
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, VOCABULARY, booleans, maybe_whole
from pipeline.arch._rope import llama3_frequencies
from pipeline.arch._rows import ATTENTION, MLP, NORMS, OUTER, QK_NORMS
from pipeline.types import u32


def _slides(config: ModelConfig) -> list[bool] | None:
    if config.get(int, "sliding_window") is None:
        return None
    return [kind == "sliding_attention" for kind in config.layer_types] or None


def _windows(config: ModelConfig) -> tuple[object]:
    return (config.raw.get("sliding_window") if config.n_layers == 64 else None,)  # the engine has it for the 32B alone


ARCH = Arch(
    name="exaone4",
    gguf="exaone4",
    classes=("Exaone4ForCausalLM",),
    keys=(
        *DECODER,
        VOCABULARY,
        Key("attention.sliding_window", maybe_whole("sliding_window"), u32),
        Key("attention.sliding_window_pattern", _slides, booleans),
    ),
    rows=(
        *OUTER,
        *ATTENTION,
        *QK_NORMS,
        replace(NORMS[1], target="blk.{bid}.post_attention_norm.weight"),
        replace(
            NORMS[1],
            source="model.layers.{bid}.post_feedforward_layernorm.weight",
            target="blk.{bid}.post_ffw_norm.weight",
        ),
        *MLP,
    ),
    expect={"hidden_act": ("silu",), "sliding_window": _windows},
    ropes=("default", "llama3"),
    literals=llama3_frequencies,
    example=decoder("Exaone4ForCausalLM", sliding_window=None),
)
