"""The hinge: from a blueprint to a whole GGUF file as data, decided before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import gguf, quant
from pipeline.blueprint import PRECISIONS, Blueprint, Draft, Finished
from pipeline.errors import UnsupportedError
from pipeline.types import Plan, PlannedTensor, u32

ALIGNMENT = 32
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

AUTO = "auto"

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "MXFP4": 38}  # ALL_F32, MOSTLY_F16, _BF16, _MXFP4_MOE of llama_ftype


def make_plan(blueprint: Blueprint, recipe: str) -> Plan:
    """Decide the file that *recipe* ("Q4_K_M" ..., or "auto" for the source's own precision) gives.

    Types follow llama-quantize over the whole ordered list of tensors; the two keys that it rewrites stand last, as it
    leaves them.

    Raises:
        UnsupportedError: if the recipe is unknown, a tensor is quantized already, or the source has another alignment
            than the usual.
    """
    if blueprint.finished and recipe == blueprint.finished.recipe:
        return _as_it_is(blueprint, blueprint.finished)
    _check_alignment(blueprint)
    if recipe == AUTO:
        recipe = blueprint.precision
        types, file_type = [d.type for d in blueprint.drafts], _FILE_TYPES[recipe]
    else:
        rule = _recipe(recipe)
        facts = [quant.TensorFacts(d.name, d.shape, d.type) for d in blueprint.drafts]
        types, file_type = quant.assign_types(rule, facts, blueprint.model), rule.file_type
    for draft, type_ in zip(blueprint.drafts, types, strict=True):
        if draft.type != type_ and draft.type not in PRECISIONS:
            _check_requantize(draft, type_, blueprint.requantize)
    metadata = (
        *blueprint.metadata,
        u32("general.quantization_version", QUANTIZATION_VERSION),
        u32("general.file_type", file_type),
    )
    tensors = _place(blueprint.drafts, types)
    entries = [gguf.TensorEntry(t.name, t.shape, gguf.tensor_type(t.type).id, t.offset) for t in tensors]
    data_start = len(gguf.encode_header(metadata, entries, ALIGNMENT))
    end = tensors[-1].offset + tensors[-1].n_bytes if tensors else 0
    return Plan(recipe, metadata, tensors, data_start, data_start + _padded(end), blueprint.notes)


def _check_alignment(blueprint: Blueprint) -> None:
    """Refuse an alignment that llama-quantize would keep in the header, over data that it aligns to 32 all the same."""
    stated = next((kv.value for kv in blueprint.metadata if kv.key == "general.alignment"), ALIGNMENT)
    if stated != ALIGNMENT:
        raise UnsupportedError(
            "the file has another alignment than the usual, and llama-quantize would make a file that cannot be read",
            where=f"{blueprint.drafts[0].view.sources[0].path}, key 'general.alignment'"
            if blueprint.drafts
            else "key 'general.alignment'",
            expected=ALIGNMENT,
            found=stated,
            hint="convert the model again from its checkpoint",
        )


def _as_it_is(blueprint: Blueprint, finished: Finished) -> Plan:
    """Plan a copy: the tensors stand where they stand in the file."""
    placed = []
    for draft in blueprint.drafts:
        source = draft.view.sources[0]
        start = source.offset - finished.data_start
        placed.append(PlannedTensor(draft.name, draft.shape, draft.type, source.n_bytes, start, draft.view))
    placed.sort(key=lambda t: t.offset)
    return Plan(
        finished.recipe,
        finished.metadata,
        tuple(placed),
        finished.data_start,
        finished.file_bytes,
        blueprint.notes,
        finished.path,
    )


def _check_requantize(draft: Draft, wanted: str, allowed: bool) -> None:
    if not allowed:
        raise UnsupportedError(
            f"tensor {draft.name} is quantized already",
            where=draft.view.sources[0].path,
            expected=f"F32, F16 or BF16, to make {wanted} of it",
            found=draft.type,
            hint="start from the unquantized GGUF or from the checkpoint: quantizing twice loses quality (--requantize "
            "does it all the same)",
        )
    if draft.type not in quant.types():
        raise UnsupportedError(
            f"tensor {draft.name} has a type that cannot be expanded again",
            where=draft.view.sources[0].path,
            expected=", ".join(quant.types()),
            found=draft.type,
            hint="start from the unquantized GGUF or from the checkpoint",
        )


def _recipe(name: str) -> quant.Recipe:
    known = quant.recipes()
    if name not in known:
        raise UnsupportedError(f"no recipe is called {name!r}", expected=", ".join(sorted(known)), found=name)
    return known[name]


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _place(drafts: Sequence[Draft], types: Sequence[str]) -> tuple[PlannedTensor, ...]:
    tensors, offset = [], 0
    for draft, type_ in zip(drafts, types, strict=True):
        n_bytes = gguf.tensor_bytes(type_, draft.shape)
        tensors.append(PlannedTensor(draft.name, draft.shape, type_, n_bytes, offset, draft.view))
        offset = _padded(offset + n_bytes)
    return tuple(tensors)
