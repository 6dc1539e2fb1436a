"""StarCoder 2: layer norms, and biases everywhere."""

from pipeline.arch._base import Arch, Key
from pipeline.arch._example import decoder
from pipeline.arch._keys import CORE, LAYER_NORM, ROPE
from pipeline.arch._notes import ignored_window
from pipeline.arch._rows import ATTENTION, INV_FREQ, NORMS, OUTER, OUTPUT_BIAS, QKV_BIASES, biases, needed, pair, sized
from pipeline.types import u32

ARCH = Arch(
    name="starcoder2",
    gguf="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    keys=(*CORE, Key("attention.head_count_kv", lambda config: config.n_heads_kv, u32), *ROPE, LAYER_NORM),
    rows=(
        *OUTER,
        *NORMS,
        *biases(OUTER[1], *NORMS),
        *ATTENTION,
        *needed(*QKV_BIASES, *OUTPUT_BIAS),
        *pair("model.layers.{bid}.mlp.c_fc", "blk.{bid}.ffn_up", sized("width_ffn", "width")),
        *pair("model.layers.{bid}.mlp.c_proj", "blk.{bid}.ffn_down", sized("width", "width_ffn")),
    ),
    drop=INV_FREQ,
    expect={"hidden_act": ("gelu_pytorch_tanh", "gelu_new", "gelu"), "use_bias": (True,)},
    defaults={"norm_epsilon": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True},
    notes=ignored_window,
    example=decoder("Starcoder2ForCausalLM", hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5),
)
