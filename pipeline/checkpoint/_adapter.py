"""Read a LoRA adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors (or .bin), headers only.

Strict, because a setting that is overlooked gives a model that is a little wrong: every key of the config is either
known to change nothing, or is obeyed, or must be off; every tensor is a known part of a known module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.safetensors import read_header
from pipeline.checkpoint.torch_zip import read_torch
from pipeline.errors import FormatError, InputError, UnsupportedError
from pipeline.strict_json import has_file, json_type, read_json, shorten
from pipeline.types import SourceTensor

CONFIG = "adapter_config.json"
_WEIGHTS = {"adapter_model.safetensors": lambda path: read_header(path).tensors, "adapter_model.bin": read_torch}
_MAX_CONFIG = 10_000_000
_PREFIX = "base_model.model."

# Keys that are obeyed below, and keys that only training or loading looks at.
_OBEYED = {
    "alpha_pattern", "base_model_name_or_path", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha",
    "modules_to_save", "peft_type", "r", "rank_pattern", "use_rslora",
}  # fmt: skip
_NEUTRAL = {
    "auto_mapping", "corda_config", "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# Starting values that leave the base model's weights as they are; the others (pissa, olora, loftq ...) change them.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")

_PART = re.compile(
    r"(?P<module>.+)\.(?:(?P<plain>lora_[AB])(?:\.default)?\.weight|(?P<embedding>lora_embedding_[AB])(?:\.default)?)"
)
_WHOLE = re.compile(r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class LowRank:
    """The change of one module's matrix: scale * B A, or the transpose of that if *turned*.

    *a* is (r, n_in), *b* is (n_out, r).
    """

    a: SourceTensor
    b: SourceTensor
    scale: float
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the change."""
        n_out, n_in = self.b.shape[0], self.a.shape[1]
        return (n_in, n_out) if self.turned else (n_out, n_in)


@dataclass(frozen=True)
class Adapter:
    """An adapter: changes by module ("model.layers.0.self_attn.q_proj"), and whole tensors by their names.

    *base* is the model it was trained on, as its config says.
    """

    path: Path
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, SourceTensor]
    base: str | None


@dataclass(frozen=True)
class _Config:
    """What the config says of scales; patterns go by the end of a module's name."""

    where: str
    r: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rslora: bool
    turned: bool

    def scale(self, module: str, rank: int) -> float:
        expected = self.ranks.get(_key_of(self.ranks, module), self.r)
        if rank != expected:
            raise FormatError(
                "an adapter's rank is not that of its config", where=f"{self.where}, {module}", expected=expected,
                found=rank,
            )  # fmt: skip
        alpha = self.alphas.get(_key_of(self.alphas, module), self.alpha)
        return alpha / math.sqrt(rank) if self.is_rslora else alpha / rank


def read_adapter(folder: Path) -> Adapter:
    """Read the headers of the adapter in *folder*.

    Raises:
        InputError: if *folder* holds no adapter.
        UnsupportedError: if it is another kind than LoRA, or LoRA with something that is not merged here (DoRA ...).
        FormatError: if config and tensors contradict each other.
    """
    if not has_file(folder / CONFIG):
        raise InputError(f"holds no {CONFIG}", where=folder, expected="a LoRA adapter as PEFT saves it")
    raw = read_json(folder / CONFIG, _MAX_CONFIG)
    config = _config(raw, str(folder / CONFIG))
    name = next((name for name in _WEIGHTS if has_file(folder / name)), None)
    if name is None:
        raise FormatError("holds no weights", where=folder, expected=" or ".join(_WEIGHTS))
    path = folder / name
    parts, replaced = _sort(path, _WEIGHTS[name](path))
    if not parts and not replaced:
        raise FormatError("holds no tensor", where=path, expected="lora_A and lora_B")
    _check_saved(raw.get("modules_to_save"), replaced, path)
    changes = {module: _change(path, module, found, config) for module, found in sorted(parts.items())}
    base = raw.get("base_model_name_or_path")
    return Adapter(path, changes, replaced, base if isinstance(base, str) and base else None)


def _config(raw: Mapping[str, Any], where: str) -> _Config:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError("is no LoRA adapter", where=where, expected='"peft_type": "LORA"', found=repr(kind))
    if raw.get("bias", "none") != "none":
        raise _unsupported(where, "bias", raw["bias"], '"none"')
    init = raw.get("init_lora_weights", True)
    if init not in _INITS or isinstance(init, int) != isinstance(init, bool):
        raise _unsupported(where, "init_lora_weights", init, "a start that leaves the base model as it is")
    for key, value in raw.items():
        if key not in _OBEYED and key not in _NEUTRAL and value:  # use_dora, lora_bias, target_parameters ...
            raise _unsupported(where, key, value, "nothing, or false")
    return _Config(
        where,
        _number(raw.get("r"), int, f"{where}, r"),
        _number(raw.get("lora_alpha"), float, f"{where}, lora_alpha"),
        _pattern(raw.get("rank_pattern"), int, f"{where}, rank_pattern"),
        _pattern(raw.get("alpha_pattern"), float, f"{where}, alpha_pattern"),
        _flag(raw, "use_rslora", where),
        _flag(raw, "fan_in_fan_out", where),
    )


def _unsupported(where: str, key: str, found: object, expected: str) -> UnsupportedError:
    return UnsupportedError(
        f"{key} is not supported in a LoRA adapter",
        where=where,
        expected=expected,
        found=shorten(repr(found)),
        hint="merge it with PEFT's merge_and_unload(), save the model, and give that as MODEL",
    )


def _number(value: object, kind: type, where: str) -> Any:
    is_number = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    if not is_number or not 0 < value < 1 << 20:  # type: ignore[operator]
        raise FormatError("is no number that can be", where=where, expected="above 0", found=shorten(repr(value)))
    return value


def _flag(raw: Mapping[str, Any], key: str, where: str) -> bool:
    value = raw.get(key) or False
    if not isinstance(value, bool):
        raise FormatError("is neither true nor false", where=f"{where}, {key}", found=json_type(value))
    return value


def _pattern(value: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(value or {}, dict):
        raise FormatError("is not an object", where=where, expected="numbers by module", found=json_type(value))
    table: dict[str, Any] = dict(value or {})  # type: ignore[call-overload]
    for name, number in table.items():
        # PEFT takes regular expressions; those of strangers can take forever, and in practice they are names.
        if not re.fullmatch(r"[\w.-]+", name):
            raise UnsupportedError("is a regular expression", where=where, expected="a name", found=shorten(name))
        _number(number, kind, f"{where}, {name}")
    return table


def _key_of(table: Mapping[str, Any], module: str) -> str:
    """Return the first key that is *module* or its end, as PEFT's get_pattern_key does."""
    return next((key for key in table if module == key or module.endswith(f".{key}")), "")


def _sort(
    path: Path, tensors: Mapping[str, SourceTensor]
) -> tuple[dict[str, dict[str, SourceTensor]], dict[str, SourceTensor]]:
    """Sort an adapter's tensors: parts by module, and whole tensors by the names they have in the model."""
    parts: dict[str, dict[str, SourceTensor]] = {}
    replaced: dict[str, SourceTensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix(_PREFIX)
        part, whole = _PART.fullmatch(name), _WHOLE.fullmatch(name)
        if name == full or not (part or whole) or (whole and not part and "lora_" in name):
            raise UnsupportedError(
                "an adapter's tensor is no part of plain LoRA",
                where=f"{path}, tensor {full}",
                expected=f"{_PREFIX}<module>.lora_A.weight, .lora_B.weight or .weight",
                hint="merge it with PEFT's merge_and_unload(), save the model, and give that as MODEL",
            )
        if part:
            kind = part["plain"] or part["embedding"]
            parts.setdefault(part["module"], {})[kind] = tensor
        elif whole:
            replaced[f"{whole['module']}.{whole['kind']}"] = tensor
    return parts, replaced


def _check_saved(modules: object, replaced: Mapping[str, SourceTensor], path: Path) -> None:
    for module in modules if isinstance(modules, list) else ():
        if not any(f".{module}." in f".{name}" for name in replaced):
            raise FormatError(
                "a module of modules_to_save is not in the adapter's weights", where=path, expected=module,
                found=", ".join(list(replaced)[:3]) or "no whole tensor",
            )  # fmt: skip


def _change(path: Path, module: str, parts: Mapping[str, SourceTensor], config: _Config) -> LowRank:
    is_embedding = any("embedding" in kind for kind in parts)
    names = [f"lora_{'embedding_' if is_embedding else ''}{letter}" for letter in "AB"]
    if sorted(parts) != names:
        raise FormatError(
            "an adapter's module is not whole",
            where=f"{path}, {module}",
            expected=" and ".join(names),
            found=", ".join(sorted(parts)),
        )
    a, b = (parts[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise FormatError(
            "an adapter's two matrices do not fit each other",
            where=f"{path}, {module}",
            expected="A of (r, n_in) and B of (n_out, r)",
            found=f"{a.shape} and {b.shape}",
        )
    return LowRank(a, b, config.scale(module, a.shape[0]), config.turned or is_embedding)
