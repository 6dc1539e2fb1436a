"""Recipes: the named mixes of llama-quantize, as a table of rules.

A rule looks at where a tensor stands and at the model, and names a type or leaves the recipe's base type.
Source: `llama_ftype_get_default_type` and `llama_tensor_get_type_impl` of src/llama-quant.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask about a model: general.architecture and counts of its header; *n_expert* 0 if it has none."""

    arch: str
    n_layer: int
    n_expert: int
    n_head: int
    n_head_kv: int

    @property
    def n_gqa(self) -> int:
        """Query heads that share a key and value head (`llama_hparams::n_gqa`)."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0


@dataclass(frozen=True)
class Place:
    """Where a tensor stands among those of its category, the *i*-th of *n*, and if there is an importance matrix."""

    i: int
    n: int
    has_importance: bool = False

    @property
    def gets_more_bits(self) -> bool:
        """Mirror `use_more_bits`: the first and last eighth, and every third between."""
        return self.i < self.n // 8 or self.i >= 7 * self.n // 8 or (self.i - self.n // 8) % 3 == 2

    @property
    def is_early(self) -> bool:
        """Whether it is in the first eighth."""
        return self.i < self.n // 8

    @property
    def is_inner(self) -> bool:
        """Whether it is neither in the first nor in the last eighth."""
        return self.n // 8 <= self.i < 7 * self.n // 8


Rule = Callable[[Place, ModelFacts], "str | None"]


def _no_rule(place: Place, model: ModelFacts) -> None:
    """Leave the base type."""


def _always(type_: str) -> Rule:
    return lambda _place, _model: type_


def _if_early(type_: str) -> Rule:
    return lambda place, _model: type_ if place.is_early else None


def _with_wide_gqa(type_: str, otherwise: str | None = None) -> Rule:
    """Choose by whether at least four query heads share their keys and values."""
    return lambda _place, model: type_ if model.n_gqa >= 4 else otherwise


def _more_bits(type_: str) -> Rule:
    return lambda place, _model: type_ if place.gets_more_bits else None


def _if_early_and_important(type_: str) -> Rule:
    return lambda place, _model: type_ if place.is_early and place.has_importance else None


def _first(count: int, type_: str, otherwise: str | None = None) -> Rule:
    return lambda place, _model: type_ if place.i < count else otherwise


def _q4_k_s_ffn_down(place: Place, model: ModelFacts) -> str | None:
    return "Q5_K" if model.arch != "falcon" and place.is_early else None


def _q4_k_m_ffn_down(place: Place, model: ModelFacts) -> str | None:
    if model.arch != "falcon":
        return "Q6_K" if place.gets_more_bits else None
    if place.i < place.n // 16:
        return "Q6_K"
    return "Q5_K" if place.gets_more_bits else None


def _q3_k_m_ffn_down(place: Place, model: ModelFacts) -> str | None:
    if place.i < place.n // 16:
        return "Q5_K"
    return "Q4_K" if model.arch != "falcon" or place.gets_more_bits else None


def _q3_k_l_ffn_down(_place: Place, model: ModelFacts) -> str | None:
    return "Q4_K" if model.arch == "falcon" else "Q5_K"


def _iq3_xxs_attn_v(place: Place, model: ModelFacts) -> str | None:
    if model.n_gqa >= 4:
        return "Q4_K"
    return None if place.has_importance else "IQ3_S"


def _iq3_xxs_ffn_down(place: Place, _model: ModelFacts) -> str | None:
    if place.has_importance:
        return None
    return "Q4_K" if place.is_early else "Q3_K"


def _iq3_xs_ffn_up(place: Place, _model: ModelFacts) -> str | None:
    return "IQ3_XXS" if place.is_inner else None


def _iq3_m_ffn_down(place: Place, model: ModelFacts) -> str | None:
    return "Q4_K" if place.is_early or (model.n_expert == 8 and place.gets_more_bits) else None


def _iq4_ffn_down(place: Place, _model: ModelFacts) -> str | None:
    return "Q5_K" if place.is_early and not place.has_importance else None


@dataclass(frozen=True)
class Recipe:
    """One quantization recipe.

    *file_type* is the value of `enum llama_ftype` that goes into general.file_type, *base* the type of a tensor without
    a rule.  The other fields are the types, or rules for the types, of a category: *attn_qk* of attn_q and attn_k,
    *attn_output_of_8* with 8 experts, *ffn_up* of ffn_gate, too.  *of_experts* is the type of experts in a recipe that
    has Q8_0 for all else; *is_tiny* marks the recipes of one and two bits.
    """

    name: str
    file_type: int
    base: str
    attn_v: Rule = _no_rule
    ffn_down: Rule = _no_rule
    attn_output_of_8: str | None = None
    attn_output: str | None = None
    attn_output_of_falcon: str | None = None
    ffn_up: Rule = _no_rule
    attn_qk: str | None = None
    output: str | None = None
    embeddings: str | None = None
    of_experts: str | None = None
    is_tiny: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether the base type has blocks; F32, F16 and BF16 follow no rules."""
        return self.base not in ("F32", "F16", "BF16")


def _tiny(name: str, file_type: int, base: str, better: str, embeddings: str, attn_output: str | None) -> Recipe:
    """Make a recipe of one or two bits: *better* is the type of attn_v and of the first ffn_down."""
    return Recipe(
        name, file_type, base, _always(better), _if_early(better),
        attn_output=attn_output, output="Q5_K", embeddings=embeddings, is_tiny=True,
    )  # fmt: skip


_RECIPES: Final = (
    Recipe("F32", 0, "F32"),
    Recipe("F16", 1, "F16"),
    Recipe("BF16", 32, "BF16"),
    Recipe("Q8_0", 7, "Q8_0"),
    Recipe("Q4_0", 2, "Q4_0", ffn_down=_if_early_and_important("Q4_1")),
    Recipe("Q4_1", 3, "Q4_1"),
    Recipe("Q5_0", 8, "Q5_0", ffn_down=_if_early_and_important("Q5_1")),
    Recipe("Q5_1", 9, "Q5_1"),
    Recipe("Q2_K", 10, "Q2_K", _with_wide_gqa("Q4_K", "Q3_K"), _always("Q3_K"), "Q5_K", "Q3_K"),
    Recipe("Q2_K_S", 21, "Q2_K", _with_wide_gqa("Q4_K"), _if_early("Q4_K")),
    Recipe("Q3_K_S", 11, "Q3_K", attn_output_of_8="Q5_K"),
    Recipe("Q3_K_M", 12, "Q3_K", _first(2, "Q5_K", "Q4_K"), _q3_k_m_ffn_down, "Q5_K", "Q4_K"),
    Recipe("Q3_K_L", 13, "Q3_K", _always("Q5_K"), _q3_k_l_ffn_down, None, "Q5_K", "Q4_K"),
    Recipe("Q4_K_S", 14, "Q4_K", _first(4, "Q5_K"), _q4_k_s_ffn_down, "Q5_K"),
    Recipe("Q4_K_M", 15, "Q4_K", _more_bits("Q6_K"), _q4_k_m_ffn_down, "Q5_K"),
    Recipe("Q5_K_S", 16, "Q5_K"),
    Recipe("Q5_K_M", 17, "Q5_K", _more_bits("Q6_K"), _more_bits("Q6_K")),
    Recipe("Q6_K", 18, "Q6_K"),
    _tiny("IQ1_S", 24, "IQ1_S", "Q2_K", "Q2_K", "IQ2_XXS"),
    _tiny("IQ1_M", 31, "IQ1_M", "Q2_K", "Q2_K", "IQ2_XXS"),
    _tiny("IQ2_XXS", 19, "IQ2_XXS", "Q2_K", "Q2_K", None),
    _tiny("IQ2_XS", 20, "IQ2_XS", "Q2_K", "Q2_K", None),
    _tiny("IQ2_S", 28, "IQ2_XS", "IQ3_S", "IQ3_S", "IQ3_S"),
    _tiny("IQ2_M", 29, "IQ2_S", "IQ3_S", "IQ3_S", "IQ3_S"),
    Recipe(
        "IQ3_XXS", 23, "IQ3_XXS", _iq3_xxs_attn_v, _iq3_xxs_ffn_down, "Q5_K", "IQ3_S",
        attn_qk="IQ2_S", output="Q5_K", embeddings="IQ3_S",
    ),
    Recipe("IQ3_XS", 22, "IQ3_S", _with_wide_gqa("Q4_K"), _no_rule, "Q5_K", ffn_up=_iq3_xs_ffn_up, attn_qk="IQ3_XXS"),
    Recipe("IQ3_S", 26, "IQ3_S", _with_wide_gqa("Q4_K"), _no_rule, "Q5_K"),
    Recipe("IQ3_M", 27, "IQ3_S", _always("Q4_K"), _iq3_m_ffn_down, "Q5_K", "Q4_K"),
    Recipe("IQ4_NL", 25, "IQ4_NL", _with_wide_gqa("Q5_K"), _iq4_ffn_down, "Q5_K"),
    Recipe("IQ4_XS", 30, "IQ4_XS", _with_wide_gqa("Q5_K"), _iq4_ffn_down, "Q5_K"),
    Recipe("TQ1_0", 36, "TQ1_0", embeddings="Q4_K"),
    Recipe("TQ2_0", 37, "TQ2_0", embeddings="Q4_K"),
    Recipe("Q1_0", 40, "Q1_0"),
    Recipe("Q2_0", 41, "Q2_0", embeddings="Q4_K"),
    Recipe("MXFP4_MOE", 38, "MXFP4", of_experts="MXFP4"),
)  # fmt: skip

# Shorter names that llama-quantize takes, too.
ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name ("Q4_K_M")."""
    return {recipe.name: recipe for recipe in _RECIPES}
