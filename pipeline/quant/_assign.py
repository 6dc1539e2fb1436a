"""Which type each tensor of a model gets: the recipe's rules, in llama-quantize's order, and what the user overrides.

The decision depends on the whole ordered list: some rules count tensors as they go, and one looks for an output tensor.
Source: src/llama-quant.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from pipeline.errors import FormatError, UnsupportedError, UsageError
from pipeline.quant._base import BlockType
from pipeline.quant._recipes import ModelFacts, Place, Recipe


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of the unquantized model: name, row-major shape, and its type there (F32, F16 or BF16)."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class Options:
    """What the user decides beside the recipe; types are ggml's names in upper case.

    *tensor_types* are pairs of a regular expression, searched in the tensor's name, and a type; the first that is found
    wins, over the recipe's rules.  *output_type* and *embedding_type* are those of the output tensor and of the token
    embeddings.  *pure* leaves out the recipe's rules, *leave_output* leaves the output tensor as it is.
    *has_importance* says that there is an importance matrix, which changes some rules.
    """

    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    pure: bool = False
    leave_output: bool = False
    has_importance: bool = False

    def describe(self) -> tuple[str, ...]:
        """Return what is overridden, one line each, as the command line says it."""
        lines = [f"--tensor-type {pattern}={type_}" for pattern, type_ in self.tensor_types]
        lines += [f"--output-type {self.output_type}"] if self.output_type else []
        lines += [f"--embedding-type {self.embedding_type}"] if self.embedding_type else []
        lines += ["--pure"] if self.pure else []
        lines += ["--leave-output"] if self.leave_output else []
        return tuple(lines)


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
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)


def _category(name: str) -> str:
    """Mirror `tensor_get_category`."""
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


def _allows_quantization(tensor: TensorFacts, arch: str, options: Options) -> bool:
    """Mirror `tensor_allows_quantization`."""
    if options.leave_output and tensor.name == "output.weight":
        return False
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

# The type for rows that cannot be cut into the blocks of the chosen one.
_FALLBACK: Final = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

_NEED_IMPORTANCE: Final = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


def requires_importance(name: str, type_: str, recipe: Recipe) -> bool:
    """Mirror `tensor_requires_imatrix`: whether a tensor of *type_* is worthless without an importance matrix."""
    if name in _WHOLE_NAMES and name not in _KEPT_NAMES:
        return False
    return type_ in _NEED_IMPORTANCE or (type_ == "Q2_K" and recipe.name == "Q2_K_S")


class _Assigner:
    """Mirror `quantize_state_impl` and `llama_tensor_get_type`: one model, one recipe, tensors in order."""

    def __init__(
        self,
        recipe: Recipe,
        tensors: Sequence[TensorFacts],
        model: ModelFacts,
        options: Options,
        sizes: dict[str, int],
    ) -> None:
        self.recipe, self.model, self.options, self._block_sizes = recipe, model, options, sizes
        self.patterns = [(compile_pattern(pattern), type_) for pattern, type_ in options.tensor_types]
        categories = [_category(tensor.name) for tensor in tensors]
        self.n_attn_v = categories.count("attn_v")
        self.has_tied_embeddings = "output" not in categories
        self.is_70b = model.arch in _IS_70B and _IS_70B[model.arch](model)
        self.seen = dict.fromkeys(("attn_v", "ffn_up", "ffn_gate", "ffn_down"), 0)

    def type_of(self, tensor: TensorFacts) -> str:
        """Return the type of the next tensor."""
        if not _allows_quantization(tensor, self.model.arch, self.options):
            return tensor.type
        category, named = _category(tensor.name), self._named(tensor.name)
        is_per_layer = tensor.name == "per_layer_token_embd.weight"
        if self.options.embedding_type and category == "token_embd" and not (is_per_layer and named):
            return self.options.embedding_type
        if self.options.output_type and category == "output":
            return self.options.output_type
        if not self.recipe.is_quantized:
            return self.recipe.base
        chosen = named or (self.recipe.base if self.options.pure else self._choose(tensor, category))
        return self._fallback(chosen, tensor)

    def _named(self, name: str) -> str | None:
        return next((type_ for pattern, type_ in self.patterns if pattern.search(name)), None)

    def _choose(self, tensor: TensorFacts, category: str) -> str:
        """Mirror `llama_tensor_get_type_impl`."""
        recipe, name = self.recipe, tensor.name
        if any(part in name for part in _AT_LEAST_Q8_0.get(self.model.arch, ())):
            return "Q8_0"
        if category == "output" or (category == "token_embd" and self.has_tied_embeddings):
            return self.options.output_type or self._output(tensor.shape[-1])
        if recipe.of_experts:
            return recipe.of_experts if self._is_of_experts(tensor, category) else "Q8_0"
        if recipe.is_tiny and category != "token_embd":
            return self._tiny(category) or recipe.base
        choosers: dict[str, Callable[[], str | None]] = {
            "token_embd": lambda: recipe.embeddings,
            "attn_v": self._attn_v,
            "attn_k": lambda: "Q8_0" if self.model.n_expert == 8 else recipe.attn_qk,
            "attn_q": lambda: recipe.attn_qk,
            "attn_output": self._attn_output,
            "other": lambda: None,
        }
        return choosers.get(category, lambda: self._ffn(category, name))() or recipe.base

    def _output(self, n_cols: int) -> str:
        recipe = self.recipe
        if recipe.of_experts or self.model.arch == "falcon" or n_cols % self._block_sizes[recipe.base]:
            return "Q8_0"
        return recipe.output or ("Q8_0" if recipe.base == "Q8_0" else "Q6_K")

    def _is_of_experts(self, tensor: TensorFacts, category: str) -> bool:
        """Tell matrices of several experts; those of MLA have three dimensions, too."""
        is_stack = len(tensor.shape) > 2 and tensor.shape[-3] > 1
        return is_stack and (self.model.arch != "bailingmoe3" or category in ("ffn_up", "ffn_gate", "ffn_down"))

    def _place(self, category: str, n: int) -> Place:
        """Return the place of the next tensor of a category, among *n*."""
        self.seen[category] += 1
        return Place(self.seen[category] - 1, n, self.options.has_importance)

    def _tiny(self, category: str) -> str | None:
        """Choose for the recipes of one and two bits, which have their own branch in C."""
        recipe, model = self.recipe, self.model
        if category == "attn_v":
            return "Q4_K" if model.n_gqa >= 4 or model.n_expert >= 4 else recipe.attn_v(_NOWHERE, model)
        if category == "attn_k" and model.n_expert == 8:
            return "Q4_K"
        if category == "ffn_down":
            return recipe.ffn_down(self._place(category, model.n_layer), model)
        if category == "attn_output":
            return "Q5_K" if model.n_expert == 8 else recipe.attn_output
        return None

    def _attn_v(self) -> str:
        chosen = self.recipe.attn_v(self._place("attn_v", self.n_attn_v), self.model) or self.recipe.base
        if self.model.n_expert == 8:
            return "Q8_0"
        return "Q5_K" if self.is_70b and chosen in ("Q3_K", "Q4_K") else chosen

    def _attn_output(self) -> str | None:
        recipe = self.recipe
        if self.model.arch == "falcon":
            return recipe.attn_output_of_falcon
        return recipe.attn_output_of_8 if self.model.n_expert == 8 else recipe.attn_output

    def _ffn(self, category: str, name: str) -> str | None:
        place = self._place(category, self.model.n_layer)
        if self.model.n_expert > 1:
            place = Place(self._checked_layer(name), place.n, place.has_importance)
        rule = self.recipe.ffn_down if category == "ffn_down" else self.recipe.ffn_up
        return rule(place, self.model)

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

    def _fallback(self, chosen: str, tensor: TensorFacts) -> str:
        """Mirror `tensor_type_fallback`: a type whose blocks fit the rows."""
        n_cols, size = tensor.shape[-1], self._block_sizes[chosen]
        if n_cols % size == 0:
            return chosen
        if chosen not in _FALLBACK and size > 32:
            raise UnsupportedError(
                f"a row cannot be cut into blocks of type {chosen}, and no other type stands in for it",
                where=tensor.name,
                expected=f"a multiple of {size} columns",
                found=n_cols,
                hint="choose another type for this tensor with --tensor-type",
            )
        fallback = _FALLBACK.get(chosen, chosen)
        return fallback if n_cols % self._block_sizes[fallback] == 0 else "F16"


_NOWHERE: Final = Place(0, 0)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern in lower case, as llama-quantize takes it.

    Raises:
        UsageError: if it is empty or no regular expression.
    """
    try:
        if pattern:
            return re.compile(pattern.lower())
        reason = "an empty pattern"
    except (re.error, OverflowError, RecursionError) as e:
        reason = str(e)
    raise UsageError("not a regular expression", where=pattern or None, found=reason)


def assign(
    recipe: Recipe, tensors: Sequence[TensorFacts], model: ModelFacts, options: Options, types: dict[str, BlockType]
) -> list[str]:
    """Return the type of each of *tensors* with the block sizes of *types*; see `quant.assign_types`."""
    assigner = _Assigner(recipe, tensors, model, options, {name: kind.block_size for name, kind in types.items()})
    return [assigner.type_of(tensor) for tensor in tensors]
