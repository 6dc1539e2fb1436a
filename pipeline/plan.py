"""The hinge: from a blueprint to a whole GGUF file as data, decided before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline import gguf, quant
from pipeline.blueprint import PACKED, PRECISIONS, Blueprint, Draft, Finished
from pipeline.errors import UnsupportedError, UsageError
from pipeline.tuning import Importance, Tuning
from pipeline.types import KV, Log, Plan, PlannedTensor, i32, u16, u32

ALIGNMENT = 32
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

AUTO = "auto"

# llama-imatrix leaves them out unless told so.
_SELDOM_KNOWN = ("output.weight", "token_embd.weight", "per_layer_token_embd.weight")

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "MXFP4": 38}  # ALL_F32, MOSTLY_F16, _BF16, _MXFP4_MOE of llama_ftype


def make_plan(blueprint: Blueprint, recipe: str, tuning: Tuning | None = None) -> Plan:
    """Decide the file that *recipe* ("Q4_K_M" ..., or "auto" for the source's own precision) gives.

    *tuning* changes the recipe.  Types follow llama-quantize over the whole ordered list of tensors; the keys that it
    rewrites stand last, as it leaves them.

    Raises:
        UnsupportedError: if the recipe is unknown, a tensor is quantized already, or the source has another alignment
            than the usual.
        UsageError: if types are so small that they need an importance matrix, or there is nothing to tune.
    """
    tuning = tuning or Tuning()
    if blueprint.finished and recipe == blueprint.finished.recipe:
        _check_untuned(blueprint, tuning)
    if blueprint.finished and recipe == blueprint.finished.recipe and blueprint.finished.path:
        return _as_it_is(blueprint, blueprint.finished)
    _check_alignment(blueprint)
    if blueprint.finished and recipe == blueprint.finished.recipe:
        return _joined(blueprint, blueprint.finished)
    if recipe == AUTO:
        recipe = blueprint.precision
        tensors, file_type = _place(blueprint.drafts, [d.type for d in blueprint.drafts]), _FILE_TYPES[recipe]
    else:
        rule = _recipe(recipe)
        tensors, file_type = _tensors(blueprint, rule, tuning), rule.file_type
    own = tuning.importance.metadata() if tuning.importance else ()
    replaced = {kv.key for kv in own}
    metadata = (
        *(kv for kv in blueprint.metadata if kv.key not in replaced),
        u32("general.quantization_version", QUANTIZATION_VERSION),
        u32("general.file_type", file_type),
        *own,
    )
    notes = (*blueprint.notes, *_unknown(tensors, tuning.importance))
    return replace(_file(recipe, metadata, tensors, notes), tuning=tuning.describe())


def _check_untuned(blueprint: Blueprint, tuning: Tuning) -> None:
    """Refuse options for a file that is taken as it is."""
    if tuning.describe():
        raise UsageError(
            "the GGUF is taken as it is, so that there is nothing to change",
            where=blueprint.drafts[0].view.sources[0].path if blueprint.drafts else None,
            found=", ".join(tuning.describe()),
            hint="say with --quant what to make of it, or leave the options out",
        )


def _tensors(blueprint: Blueprint, recipe: quant.Recipe, tuning: Tuning) -> tuple[PlannedTensor, ...]:
    """Choose types, and find the importance of each matrix."""
    drafts, matrix = blueprint.drafts, tuning.importance
    facts = [quant.TensorFacts(d.name, d.shape, d.type) for d in drafts]
    chosen = quant.assign_types(recipe, facts, blueprint.model, tuning.effective_options)
    types = [d.type if _is_kept(d, blueprint) else t for d, t in zip(drafts, chosen, strict=True)]
    made = []
    for draft, tensor in zip(drafts, _place(drafts, types), strict=True):
        if draft.type == tensor.type:
            made.append(tensor)
            continue
        if draft.type not in PRECISIONS:
            _check_requantize(draft, tensor.type, blueprint.requantize)
        found = matrix.of(tensor.name, tensor.shape) if matrix else None
        if found is None and quant.requires_importance(tensor.name, tensor.type, recipe):
            _refuse_without(tensor, matrix)
        made.append(replace(tensor, importance=found))
    return tuple(made)


def _refuse_without(tensor: PlannedTensor, matrix: Importance | None) -> None:
    raise UsageError(
        f"{tensor.type} is worthless without an importance matrix",
        where=tensor.name if matrix is None else f"{matrix.path}: no entry for {tensor.name}",
        hint="make one with `gguf-pipeline imatrix` and give it with --imatrix, or take another quantization",
    )


def _unknown(tensors: Sequence[PlannedTensor], matrix: Importance | None) -> tuple[str, ...]:
    """Say which matrices are quantized without importance although there is a file of it."""
    names = [
        t.name
        for t in tensors
        if matrix and t.importance is None and t.type in quant.types() and quant.get(t.type).is_weighted
        and t.name not in _SELDOM_KNOWN
    ]  # fmt: skip
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return (f"the importance matrix knows nothing of {len(names)} tensors: {shown}",) if names else ()


def say_notes(planned: Sequence[Plan], known: Sequence[str], log: Log) -> None:
    """Say what plans note beyond the notes that are *known*."""
    for note in dict.fromkeys(note for plan in planned for note in plan.notes if note not in known):
        log.note(note)


def split_plan(whole: Plan, max_bytes: int) -> tuple[Plan, ...]:
    """Cut a plan into parts of at most *max_bytes* of tensors each, as llama-gguf-split does; one if all fits.

    A tensor is never cut: one that is larger has a part of its own.  The first part has the metadata.  The order of the
    three keys is that in which llama-gguf-split leaves them: it sets the count when it knows it.

    Raises:
        UsageError: if there would be more parts than the format can count.
    """
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in whole.tensors:
        n_bytes = gguf.padded(tensor.n_bytes)
        if groups[-1] and size + n_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += n_bytes
    if len(groups) == 1:
        return (whole,)
    if len(groups) > gguf.MAX_PARTS:
        raise UsageError(
            "the parts are too small", expected=f"{gguf.MAX_PARTS} parts at most", found=f"{len(groups)} parts"
        )
    return tuple(
        _file(
            whole.recipe,
            (
                *(whole.metadata if no == 0 else ()),
                u16("split.no", no),
                i32("split.tensors.count", len(whole.tensors)),
                u16("split.count", len(groups)),
            ),
            _moved(group),
            whole.notes,
        )
        for no, group in enumerate(groups)
    )


def plain_plan(metadata: tuple[KV, ...], tensors: Sequence[tuple[str, tuple[int, ...], str]]) -> Plan:
    """Plan a file of *tensors*, each with its name, shape and type, that no recipe decided."""
    listed = [PlannedTensor(name, shape, type_, gguf.tensor_bytes(type_, shape), 0) for name, shape, type_ in tensors]
    return _file("", metadata, _moved(listed), ())


def _file(recipe: str, metadata: tuple[KV, ...], tensors: tuple[PlannedTensor, ...], notes: tuple[str, ...]) -> Plan:
    entries = [gguf.TensorEntry(t.name, t.shape, gguf.tensor_type(t.type).id, t.offset) for t in tensors]
    data_start = len(gguf.encode_header(metadata, entries, ALIGNMENT))
    end = tensors[-1].offset + tensors[-1].n_bytes if tensors else 0
    return Plan(recipe, metadata, tensors, data_start, data_start + gguf.padded(end), notes)


def _is_kept(draft: Draft, blueprint: Blueprint) -> bool:
    """Say whether no recipe changes a tensor; llama-quantize leaves one if told so with --tensor-type."""
    return draft.type in PACKED and not blueprint.requantize


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


def _joined(blueprint: Blueprint, finished: Finished) -> Plan:
    """Plan one file of all parts: the tensors as they are, in the order in which they stand there."""
    drafts = sorted(blueprint.drafts, key=lambda d: (d.view.sources[0].path.name, d.view.sources[0].offset))
    return _file(finished.recipe, finished.metadata, _place(drafts, [d.type for d in drafts]), blueprint.notes)


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


def _moved(tensors: Sequence[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """Place tensors one behind the other, from the start of a data section on."""
    offset, placed = 0, []
    for tensor in tensors:
        placed.append(replace(tensor, offset=offset))
        offset = gguf.padded(offset + tensor.n_bytes)
    return tuple(placed)


def _place(drafts: Sequence[Draft], types: Sequence[str]) -> tuple[PlannedTensor, ...]:
    return _moved(
        [
            PlannedTensor(draft.name, draft.shape, type_, gguf.tensor_bytes(type_, draft.shape), 0, draft.view)
            for draft, type_ in zip(drafts, types, strict=True)
        ]
    )
