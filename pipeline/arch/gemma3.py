"""Gemma 3, and the language model of its multimodal sizes: five layers with a sliding window, then one without."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._config import ModelConfig
from pipeline.arch._example import decoder
from pipeline.arch._keys import DECODER, maybe_number, whole, window_pattern
from pipeline.arch._rows import ATTENTION, INV_FREQ, LANGUAGE_MODEL, MLP, OUTER, QK_NORMS, VISION, with_step
from pipeline.arch._steps import plus_one
from pipeline.arch.gemma2 import GEMMA_NORMS
from pipeline.types import f32, u32


def _attention_scalar(config: ModelConfig) -> tuple[int]:
    return (config.width // config.n_heads if config.n_layers == 62 else config.head_dim,)


ARCH = Arch(
    name="gemma3",
    gguf="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    keys=(
        *DECODER,
        Key("final_logit_softcapping", maybe_number("final_logit_softcapping"), f32),
        Key("attention.sliding_window", whole("sliding_window"), u32),
        window_pattern(6),
    ),
    rows=(OUTER[0], OUTER[2], *GEMMA_NORMS, *with_step(plus_one, *QK_NORMS), *ATTENTION, *MLP),
    drop=INV_FREQ,
    abilities=VISION,
    prefixes=LANGUAGE_MODEL,
    # The published multimodal checkpoints leave out what Gemma3TextConfig has by itself.
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    expect={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "query_pre_attn_scalar": _attention_scalar,
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (False,),
    },
    ropes=("default", "linear"),
    example=decoder(
        "Gemma3ForCausalLM", num_hidden_layers=6, head_dim=16, query_pre_attn_scalar=16, sliding_window=128
    ),
)
