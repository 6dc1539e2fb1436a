"""What a model is before a recipe: its header and its tensors, from a checkpoint or from a GGUF.  No weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import arch as archs
from pipeline import gguf, modelfile, quant
from pipeline.checkpoint import Checkpoint, TensorReader
from pipeline.errors import FormatError, UnsupportedError
from pipeline.tokenizer import Tokenizer
from pipeline.types import KV, Source, SourceTensor, ValueType, View, array, string, u32
from pipeline.views import Constant, Stored, item_bytes

# Moves only when the same checkpoint and recipe give other bytes than before.
BYTE_VERSION = 1

PRECISIONS = ("F32", "F16", "BF16")
PACKED = ("MXFP4",)  # by the model's makers; recipes keep it as it is

# Matrices that llama.cpp's graphs want in float32, beside all vectors and norms.
_ALWAYS_F32 = (
    ".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight", ".ssm_conv1d.weight", ".shortconv.conv.weight",
    ".attn_rel_b.weight",
)  # fmt: skip
_ALWAYS_F32_NAMES = ("position_embd.weight", "token_types.weight")

_SET_BY_RECIPE = ("general.quantization_version", "general.file_type")


@dataclass(frozen=True)
class Draft:
    """A tensor before a recipe chose its type: *type* is the one it has in the file of the source's own precision."""

    name: str
    type: str
    view: View

    @property
    def shape(self) -> tuple[int, ...]:
        """The row-major shape."""
        return self.view.shape

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        n = 1
        for d in self.shape:
            n *= d
        return n


@dataclass(frozen=True)
class Finished:
    """A GGUF that can be taken as it is: what its type is called, its header's and its whole size in bytes.

    *path* is None where it has several parts: then it is joined, and *data_start* and *file_bytes* mean nothing.
    """

    path: Path | None
    recipe: str
    metadata: tuple[KV, ...]
    data_start: int = 0
    file_bytes: int = 0


@dataclass(frozen=True)
class Blueprint:
    """A model before a recipe: *drafts* are in file order, *metadata* lacks the two keys a recipe sets.

    *finished* is the file that already is what its own recipe gives; *requantize* allows to quantize what is quantized.
    """

    metadata: tuple[KV, ...]
    drafts: tuple[Draft, ...]
    model: quant.ModelFacts
    notes: tuple[str, ...] = ()
    finished: Finished | None = None
    requantize: bool = False

    @property
    def n_parameters(self) -> int:
        """Number of weights in all tensors."""
        return sum(draft.n_elements for draft in self.drafts)

    @property
    def pooling_type(self) -> int | None:
        """How vectors are pooled (enum llama_pooling_type); None where the header does not say."""
        value = self._value("pooling_type")
        return value if isinstance(value, int) else None

    @property
    def is_encoder(self) -> bool:
        """Whether each token sees all others: such a model makes vectors, never text."""
        return self._value("attention.causal") is False

    @property
    def context_length(self) -> int | None:
        """The context that the model was trained for, in tokens."""
        value = self._value("context_length")
        return value if isinstance(value, int) else None

    def _value(self, key: str) -> Any:
        return next((kv.value for kv in self.metadata if kv.key == f"{self.model.arch}.{key}"), None)

    @property
    def precision(self) -> str:
        """The type most weights have: the file type that "auto" stands for."""
        totals = dict.fromkeys(PRECISIONS, 0)
        for draft in self.drafts:
            if len(draft.shape) > 1:
                totals[draft.type] = totals.get(draft.type, 0) + draft.n_elements
        return max(totals, key=totals.__getitem__)


def from_checkpoint(checkpoint: Checkpoint, tokenizer: Tokenizer, source: Source) -> Blueprint:
    """Read a checkpoint's headers into a blueprint.

    Raises:
        UnsupportedError: if the architecture, a setting of it, or a tensor is unknown.
        FormatError: if config.json and the weights do not belong together.
    """
    raw = checkpoint.config
    arch = archs.match(raw)
    config = archs.with_padding(arch, arch.config(raw, checkpoint.pooling()), checkpoint.tensors)
    mapped = archs.map_tensors(arch, config, checkpoint.tensors)
    drafts = [
        *(Draft(t.name, _own_type(t.name, t.view), t.view) for t in mapped.tensors),
        *(Draft(lit.name, "F32", Constant((len(lit.values),), lit.values)) for lit in arch.literals(config)),
    ]
    drafts.sort(key=lambda d: quant.tensor_order_key(d.name))
    keys = [made for key in arch.keys if (made := _arch_key(arch, key, config)) is not None]
    metadata = (
        *_general(arch.gguf, source, _size_label(drafts)),
        *modelfile.sampling_metadata(checkpoint.generation_config),
        *keys,
        *_scalar_keys(mapped.scalars),
        *tokenizer.metadata,
    )
    facts = _facts_of({kv.key: kv for kv in metadata}, source.folder)
    _check_adapted(checkpoint, drafts)
    notes = (
        *checkpoint.notes,
        *archs.notes(arch, config),
        *checkpoint.sentence_facts().notes,
        *tokenizer.notes,
        *_dropped(mapped),
    )
    return Blueprint(metadata, tuple(drafts), facts, notes)


def _check_adapted(checkpoint: Checkpoint, drafts: Sequence[Draft]) -> None:
    """Refuse an adapter for a tensor that the file leaves out, such as a head that is tied to the embeddings."""
    lost = checkpoint.adapted - {source.name for draft in drafts for source in draft.view.sources}
    if lost:
        raise UnsupportedError(
            "the adapter changes a tensor that the GGUF has no place for",
            where=min(lost),
            found=f"{len(lost)} such",
            hint="a head that is tied to the embeddings cannot differ from them; train the adapter without it",
        )


def from_gguf(parts: Sequence[gguf.GgufFile], *, requantize: bool = False) -> Blueprint:
    """Read the header of a GGUF, in one part or several, so that it can be quantized, or quantized again.

    Of several parts the first tells about the model, as for llama.cpp.
    """
    drafts = [
        Draft(t.name, t.type, Stored(SourceTensor(t.name, t.type, t.shape, file.path, t.offset, t.n_bytes)))
        for file in parts
        for t in file.tensors
    ]
    drafts.sort(key=lambda d: quant.tensor_order_key(d.name))
    first = parts[0]
    metadata = tuple(kv for key, kv in first.metadata.items() if key not in (*_SET_BY_RECIPE, *gguf.PART_KEYS))
    return Blueprint(metadata, tuple(drafts), _facts_of(first.metadata, first.path), requantize=requantize)


def _own_type(name: str, view: View) -> str:
    """Give the type that keeps a tensor's precision: its own for matrices, float32 for vectors and norms."""
    where = f"{view.sources[0].path.name}, tensor {view.sources[0].name}"
    if not view.shape:
        raise FormatError("a tensor has no dimensions", where=where, expected="weights", found="a single number")
    if 0 in view.shape:
        raise FormatError("a tensor is empty", where=where, expected="at least one weight", found=view.shape)
    if view.dtype in PACKED:
        return view.dtype
    if view.dtype not in PRECISIONS:
        raise UnsupportedError(
            "a tensor has a type that cannot be converted yet",
            where=where,
            expected=" or ".join(PRECISIONS),
            found=view.dtype,
            hint="take the checkpoint in its original precision",
        )
    if len(view.shape) == 1 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return "F32"
    if name in _ALWAYS_F32_NAMES or name.endswith(_ALWAYS_F32):
        return "F32"
    return view.dtype


def _arch_key(arch: archs.Arch, key: archs.Key, config: archs.ModelConfig) -> KV | None:
    value = key.get(config)
    if value is None:
        return None
    if isinstance(value, int) and not 0 <= value < 1 << 32:
        raise FormatError("a value does not fit its GGUF key", where=f"config.json, for {key.name}", found=value)
    name = key.name if key.name.startswith("tokenizer.") else f"{arch.gguf}.{key.name}"
    try:
        return key.make(name, value)
    except FormatError as e:
        where = f"config.json, for {key.name}"
        raise FormatError(e.what, where=where, expected=e.expected, found=e.found) from e


def _scalar_keys(tensors: Sequence[archs.Mapped]) -> list[KV]:
    """Read tensors of one number, the only weights that a header needs, into an array for each key."""
    values: dict[str, list[float]] = {}
    with TensorReader() as reader:
        for tensor in tensors:
            values.setdefault(tensor.name, []).append(_read_number(reader, tensor.view))
    return [array(key, ValueType.FLOAT32, numbers) for key, numbers in values.items()]


def _read_number(reader: TensorReader, view: View) -> float:
    found: object = view.shape
    if view.shape in ((), (1,)):
        raw = np.empty((1, item_bytes(view.dtype)), np.uint8)
        number = np.empty((1, 1), np.float32)
        view.read(reader, np.zeros(1, np.int64), slice(None), raw)
        reader.decode(view.dtype, raw, number)
        if np.isfinite(number).all():
            return float(number[0, 0])
        found = number[0, 0]
    raise FormatError("not a number", where=view.sources[0].name, expected="one finite number", found=found)


def _general(arch: str, source: Source, size: str) -> list[KV]:
    """Say what the model is.  Its name is the repository's: a folder's would make other bytes of a renamed copy."""
    made = [string("general.architecture", arch), string("general.type", "model")]
    is_base = source.adapter is not None  # with an adapter it is another model
    if source.repository:
        name = string(
            "general.base_model.0.name" if is_base else "general.name", _title(source.repository.split("/")[-1])
        )
        made += [u32("general.base_model.count", 1), name] if is_base else [name]
    made += [string("general.size_label", size), u32("gguf_pipeline.byte_version", BYTE_VERSION)]
    if source.repository:
        key = "general.base_model.0.repo_url" if is_base else "general.source.repo_url"
        made.append(string(key, f"https://huggingface.co/{source.repository}"))
    if source.commit:
        made.append(string("gguf_pipeline.source.commit", source.commit))
    return made


def _title(name: str) -> str:
    """Write a model's name as llama.cpp's converter does: "my-model" becomes "My Model", "Qwen2.5" stays."""
    words = name.strip().replace("-", " ").split()
    plain = re.compile(r"v?\d.*")
    return " ".join(w.title() if w.islower() and not plain.fullmatch(w) else w for w in words)


def size_label(n_parameters: int) -> str:
    """Round a number of weights to a label of at least two digits: 99K, 2.6M, 7.2B."""
    units = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
    limit, suffix = next((unit for unit in units if n_parameters >= unit[0]), units[-1])
    scaled = n_parameters / limit
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{suffix}"


def _size_label(drafts: Sequence[Draft]) -> str:
    """Label a model; one with experts by their number and the weights of the rest with one of them ("8x7.2B")."""
    of_experts = [d for d in drafts if "_exps." in d.name and len(d.shape) > 2]  # the official label leaves out biases
    shared = sum(d.n_elements for d in drafts if d not in of_experts)
    if not of_experts:
        return size_label(shared)
    each = sum(d.n_elements // d.shape[0] for d in of_experts)
    count = sum(d.shape[0] for d in of_experts) // len(of_experts)
    return f"{count}x{size_label(shared + each)}"


def _dropped(mapped: archs.MappedTensors) -> list[str]:
    heads = [name for name in mapped.dropped if name in archs.HEADS]
    lost = [
        f"{ability} left out: a GGUF of the language model has no place for these {count} tensors"
        for ability, count in mapped.lost.items()
    ]
    return [*(f"{name} is left out: config.json ties it to the embeddings" for name in heads), *lost]


def _facts_of(metadata: Mapping[str, KV], where: Path) -> quant.ModelFacts:
    """Give what the recipes ask, read from the header as llama-quantize reads it."""
    arch = str(_needed(metadata, "general.architecture", where, "a text"))
    blocks = _needed(metadata, f"{arch}.block_count", where, "a whole number")
    n_heads = _count(metadata, f"{arch}.attention.head_count", where)
    return quant.ModelFacts(
        arch,
        _whole(blocks, f"{arch}.block_count", where, 1, archs.MAX_LAYERS),
        _count(metadata, f"{arch}.expert_count", where, archs.MAX_EXPERTS),
        n_heads,
        _count(metadata, f"{arch}.attention.head_count_kv", where) or n_heads,
    )


def _count(metadata: Mapping[str, KV], key: str, where: Path, high: int = (1 << 32) - 1) -> int:
    """Read a number that may be missing; of one for each layer, llama.cpp's rules look at the first."""
    kv = metadata.get(key)
    if kv is None:
        return 0
    value = kv.value
    if kv.type is ValueType.ARRAY:
        value = value[0] if len(value) else None
    return _whole(value, key, where, 0, high)


def _whole(value: Any, key: str, where: Path, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise FormatError(
            f"{key} has an impossible value",
            where=where,
            expected=f"a whole number from {low} to {high}",
            found="an empty array" if value is None else repr(value)[:80],
        )
    return value


def _needed(metadata: Mapping[str, KV], key: str, where: Path, kind: str) -> Any:
    kv = metadata.get(key)
    if kv is None or (kv.type is ValueType.STRING) != (kind == "a text"):
        raise FormatError(
            f"the header lacks {key}",
            where=where,
            expected=kind,
            found=None if kv is None else kv.type.name,
            hint="is this a language model? Files with only a vocabulary or a projector cannot be quantized",
        )
    return kv.value
