"""Recipes: which type each tensor of a model gets, as `llama-quantize` decides it.

The decision depends on the whole ordered list: some rules count tensors as they go, and one looks for an output tensor.
Source: src/llama-quant.cpp, without importance matrix and overrides, for the recipes of the table below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from pipeline.errors import FormatError
from pipeline.quant._base import BlockType


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of the unquantized model: name, row-major shape, and its type there (F32, F16 or BF16)."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask about a model: general.architecture and counts of its header; *n_expert* 0 if it has none."""

    arch: str
    n_layer: int
    n_expert: int
    n_head: int
    n_head_kv: int


@dataclass(frozen=True)
class Place:
    """Where a tensor stands among those of its category: the *i*-th of *n*."""

    i: int
    n: int

    @property
    def gets_more_bits(self) -> bool:
        """Mirror `use_more_bits`: the first and last eighth, and every third between."""
        return self.i < self.n // 8 or self.i >= 7 * self.n // 8 or (self.i - self.n // 8) % 3 == 2


Rule = Callable[[Place, ModelFacts], "str | None"]


def _no_rule(place: Place, model: ModelFacts) -> None:
    """Leave the base type."""


def _q6_where_more_bits(place: Place, model: ModelFacts) -> str | None:  # noqa: ARG001 - has the form of a rule
    return "Q6_K" if place.gets_more_bits else None


def _q5_for_the_first_four(place: Place, model: ModelFacts) -> str | None:  # noqa: ARG001 - has the form of a rule
    return "Q5_K" if place.i < 4 else None


def _q5_for_the_first_eighth(place: Place, model: ModelFacts) -> str | None:
    return "Q5_K" if model.arch != "falcon" and place.i < place.n // 8 else None


def _q6_but_less_for_falcon(place: Place, model: ModelFacts) -> str | None:
    if model.arch != "falcon":
        return _q6_where_more_bits(place, model)
    if place.i < place.n // 16:
        return "Q6_K"
    return "Q5_K" if place.gets_more_bits else None


@dataclass(frozen=True)
class Recipe:
    """One quantization recipe.

    *file_type* is the value of `enum llama_ftype` that goes into general.file_type, *base* the type of a tensor without
    a rule.  *attn_v* and *ffn_down* may choose another one; *attn_output_of_8* is that of attn_output with 8 experts.
    """

    name: str
    file_type: int
    base: str
    attn_v: Rule = _no_rule
    ffn_down: Rule = _no_rule
    attn_output_of_8: str | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether the base type has blocks; F32, F16 and BF16 follow no rules."""
        return self.base not in ("F32", "F16", "BF16")


_RECIPES: Final = (
    Recipe("F32", 0, "F32"),
    Recipe("F16", 1, "F16"),
    Recipe("BF16", 32, "BF16"),
    Recipe("Q8_0", 7, "Q8_0"),
    Recipe("Q4_0", 2, "Q4_0"),
    Recipe("Q4_K_S", 14, "Q4_K", _q5_for_the_first_four, _q5_for_the_first_eighth, "Q5_K"),
    Recipe("Q4_K_M", 15, "Q4_K", _q6_where_more_bits, _q6_but_less_for_falcon, "Q5_K"),
    Recipe("Q5_K_S", 16, "Q5_K"),
    Recipe("Q5_K_M", 17, "Q5_K", _q6_where_more_bits, _q6_where_more_bits),
    Recipe("Q6_K", 18, "Q6_K"),
)


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name ("Q4_K_M")."""
    return {recipe.name: recipe for recipe in _RECIPES}


_LAYER: Final = re.compile(r"blk\.\s*([+-]?\d+)", re.ASCII)


def _layer(name: str) -> int | None:
    """Mirror `sscanf(name, "blk.%d.", ...)`: the number, also where the second dot is missing."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def tensor_order_key(name: str) -> tuple[int, bytes]:
    """Return the sort key of llama_model_loader's `weight_name_comparer`: layer (-1 for none), then name."""
    layer = _layer(name)
    return (-1 if layer is None else layer, name.encode())


# In the order in which `tensor_get_category` asks; the first two are whole names, the others parts of one.
_WHOLE_NAMES: Final = {
    "output.weight": "output",
    "token_embd.weight": "token_embd",
    "per_layer_token_embd.weight": "token_embd",
}
_PARTS: Final = (
    ("attn_qkv.weight", "attn_v"),  # `category_is_attn_v`: treated as attn_v throughout
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "other"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)


def _category(name: str) -> str:
    """Mirror `tensor_get_category`, as far as the recipes here tell the categories apart."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    return next((category for part, category in _PARTS if part in name), "other")


_KEPT_NAMES: Final = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight",
    "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_PARTS_OF: Final = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight",
        "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
    ),
}  # fmt: skip
_AT_LEAST_Q8_0: Final = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}


def _allows_quantization(tensor: TensorFacts, arch: str) -> bool:
    """Mirror `tensor_allows_quantization`."""
    if prod(tensor.shape[:-1]) <= 1:  # `ggml_n_dims` drops dimensions of one
        return False
    name = tensor.name
    # A name of five letters passes, too: C compares "not found" with the length less six, and both are 2**64 - 1.
    ends_well = name.endswith("weight") or len(name.encode()) == 5
    parts = (*_KEPT_PARTS, *_KEPT_PARTS_OF.get(arch, ()))
    return ends_well and name not in _KEPT_NAMES and not any(part in name for part in parts)


def _llama_is_70b(model: ModelFacts) -> bool:
    return model.n_layer == 80 and model.n_expert != 8 and model.n_head != model.n_head_kv


# The architectures whose loader can arrive at LLM_TYPE_70B (src/models/*.cpp).
_IS_70B: Final[dict[str, Callable[[ModelFacts], bool]]] = {
    "llama": _llama_is_70b,
    "llama-embed": _llama_is_70b,
    "qwen2": lambda model: model.n_layer == 80,
    "deci": lambda model: model.n_layer == 80,
    "olmo": lambda model: model.n_layer == 80,
    "jais2": lambda model: model.n_layer == 68,
}

_FALLBACK: Final = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


class _Assigner:
    """Mirror `quantize_state_impl` and `llama_tensor_get_type`: one model, one recipe, tensors in order."""

    def __init__(
        self, recipe: Recipe, tensors: Sequence[TensorFacts], model: ModelFacts, sizes: dict[str, int]
    ) -> None:
        self.recipe, self.model, self._block_sizes = recipe, model, sizes
        categories = [_category(tensor.name) for tensor in tensors]
        self.n_attn_v = categories.count("attn_v")
        self.has_tied_embeddings = "output" not in categories
        self.is_70b = model.arch in _IS_70B and _IS_70B[model.arch](model)
        self.i_attn_v = 0
        self.i_ffn_down = 0

    def type_of(self, tensor: TensorFacts) -> str:
        """Return the type of the next tensor."""
        if tensor.type == "MXFP4":  # llama-quantize refuses to quantize twice; named in --tensor-type it copies
            return tensor.type
        if not _allows_quantization(tensor, self.model.arch):
            return tensor.type
        if not self.recipe.is_quantized:
            return self.recipe.base
        return self._fallback(self._choose(tensor), tensor.shape[-1])

    def _choose(self, tensor: TensorFacts) -> str:
        """Mirror `llama_tensor_get_type_impl`."""
        name = tensor.name
        if any(part in name for part in _AT_LEAST_Q8_0.get(self.model.arch, ())):
            return "Q8_0"
        category = _category(name)
        if category == "output" or (category == "token_embd" and self.has_tied_embeddings):
            return self._output(tensor.shape[-1])
        if category == "attn_v":
            return self._attn_v()
        if category in ("ffn_up", "ffn_gate", "ffn_down"):
            return self._ffn(category, name)
        return self._of_8_experts(category) if self.model.n_expert == 8 else self.recipe.base

    def _output(self, n_cols: int) -> str:
        base = self.recipe.base
        if base == "Q8_0" or self.model.arch == "falcon" or n_cols % self._block_sizes[base]:
            return "Q8_0"
        return "Q6_K"

    def _attn_v(self) -> str:
        chosen = self.recipe.attn_v(Place(self.i_attn_v, self.n_attn_v), self.model) or self.recipe.base
        self.i_attn_v += 1
        if self.model.n_expert == 8:
            return "Q8_0"
        return "Q5_K" if self.is_70b and chosen == "Q4_K" else chosen

    def _of_8_experts(self, category: str) -> str:
        if category == "attn_k":
            return "Q8_0"
        if category == "attn_output" and self.model.arch != "falcon":
            return self.recipe.attn_output_of_8 or self.recipe.base
        return self.recipe.base

    def _ffn(self, category: str, name: str) -> str:
        layer = self._checked_layer(name) if self.model.n_expert > 1 else self.i_ffn_down
        if category != "ffn_down":
            return self.recipe.base
        self.i_ffn_down += 1
        return self.recipe.ffn_down(Place(layer, self.model.n_layer), self.model) or self.recipe.base

    def _checked_layer(self, name: str) -> int:
        """Mirror `layer_info` for models with experts, whose tensors need not come in the order of their layers."""
        layer = _layer(name)
        if layer is None or not 0 <= layer < self.model.n_layer:
            raise FormatError(
                "an expert tensor does not tell its layer",
                where=name,
                expected=f"a name that starts with blk.N., N in 0..{self.model.n_layer - 1}",
                found=name if layer is None else layer,
            )
        return layer

    def _fallback(self, chosen: str, n_cols: int) -> str:
        """Mirror `tensor_type_fallback`: a type whose blocks fit the rows."""
        if n_cols % self._block_sizes[chosen] == 0:
            return chosen
        fallback = _FALLBACK.get(chosen, chosen)
        return fallback if n_cols % self._block_sizes[fallback] == 0 else "F16"


def assign(recipe: Recipe, tensors: Sequence[TensorFacts], model: ModelFacts, types: dict[str, BlockType]) -> list[str]:
    """Return the type of each of *tensors* with the block sizes of *types*; see `quant.assign_types`."""
    assigner = _Assigner(recipe, tensors, model, {name: kind.block_size for name, kind in types.items()})
    return [assigner.type_of(tensor) for tensor in tensors]
