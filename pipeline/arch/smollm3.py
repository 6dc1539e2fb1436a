"""SmolLM3: Llama's layout; every fourth block has no rotary embedding, which the engine knows by itself."""

from dataclasses import replace

from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._notes import ignored_window
from pipeline.arch.llama import ARCH as LLAMA


def _every_fourth(config: ModelConfig) -> tuple[list[int]]:
    return ([int((bid + 1) % 4 != 0) for bid in range(config.n_layers)],)


ARCH = replace(
    LLAMA,
    name="smollm3",
    gguf="smollm3",
    classes=("SmolLM3ForCausalLM",),
    defaults={"tie_word_embeddings": True, "no_rope_layer_interval": 4, "use_sliding_window": False},
    expect={**LLAMA.expect, "no_rope_layers": _every_fourth, "no_rope_layer_interval": (4,)},
    notes=ignored_window,
    example=decoder("SmolLM3ForCausalLM", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0], tie_word_embeddings=True),
)
