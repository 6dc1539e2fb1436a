"""Prove a GGUF: its bytes are read strictly, and a sample of its tensors is derived again from the source.

The recipe is not asked for: general.file_type and the types of the tensors tell it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import flow, quant
from pipeline import plan as plans
from pipeline import report as reports
from pipeline.blueprint import Blueprint
from pipeline.checkpoint import TensorReader
from pipeline.encode import derive
from pipeline.errors import ProofError, UsageError
from pipeline.gguf import GgufFile, GgufTensor, read_gguf
from pipeline.provenance import weights_of
from pipeline.source import OpenSource
from pipeline.store import Manifest, Name, Store
from pipeline.store.blobs import hash_bytes
from pipeline.tuning import Tuning
from pipeline.types import KV, Check, Log, Plan, PlannedTensor

SAMPLE = 16

# What a header says of its source in words.  A folder has no repository and no commit, and may be called anything.
_IDENTITY = ("general.name", "general.source.repo_url", "gguf_pipeline.source.commit")


@dataclass(frozen=True)
class TensorProof:
    """One tensor, derived again.  *row* and *offset* (absolute, in bytes) are those of the first difference, if any."""

    name: str
    type: str
    n_bytes: int
    equal: bool
    row: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Verification:
    """What was found: *recipe* is None without a source; *tensors* are those of the sample, in file order."""

    path: Path
    recipe: str | None
    seed: int
    checks: tuple[Check, ...]
    tensors: tuple[TensorProof, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"path": str(self.path)}

    def refuse_differences(self) -> None:
        """Stop where something is not what it should be.

        Raises:
            ProofError: naming the first difference.
        """
        for check in self.checks:
            if check.state == "different":
                raise ProofError(
                    f"the {check.name} is not what it should be",
                    where=self.path,
                    found=check.detail,
                    hint="is it the right source, at the right commit? Else make the file again",
                )


def verify_publication(store: Store, name: Name, verification: Verification) -> Verification:
    """Read the manifest and hash the blobs that it names too; these checks come first."""
    data = store.manifest_bytes(name)
    made = Manifest.from_bytes(data, store.manifest_path(name))
    digest = hash_bytes(data).digest
    known = reports.find(digest)
    said = f"as {known['path']} says" if known else "no report tells of it"
    found = list(store.verify(name))
    bad = [f"{one.layer.blob.digest} is {one.found}" for one in found if not one.ok]
    total = sum(one.layer.blob.size for one in found)
    checks = (
        Check("manifest", "proven", f"{digest}, {len(made.all_layers)} blobs; {said}"),
        Check("blobs", "different" if bad else "proven", "; ".join(bad) or f"{len(found)} blobs, {total:,} bytes"),
    )
    return replace(verification, checks=(*checks, *verification.checks))


def verify_file(path: Path) -> Verification:
    """Read the header of *path* strictly.

    Raises:
        PipelineError: if the file is bad.
    """
    return Verification(path, None, 0, (_read(read_gguf(path)),))


def verify_against(
    path: Path,
    model: str,
    log: Log,
    *,
    sample: int | None = SAMPLE,
    seed: int = 0,
    threads: int = 0,
    engine: str = quant.AUTO,
    adapter: Path | None = None,
    tuning: Tuning | None = None,
) -> Verification:
    """Derive the file at *path* again from *model* and compare: the header, the plan, and the bytes of some tensors.

    Args:
        path: a GGUF, quantized or not.
        model: the source, as everywhere.
        log: told what is being done.
        sample: how many matrices to derive, see `choose`; None means all.
        seed: chooses the sample.
        threads: worker threads; 0 means one for each core.
        engine: what quantizes (see quant.get_engine).
        adapter: a LoRA adapter that was merged into the source.
        tuning: how the recipe was changed.

    Raises:
        PipelineError: if the file or the source is bad; a difference is an answer, not an error.
    """
    quant.check_engine(engine)
    if sample is not None and sample < 1:
        raise UsageError("a sample has at least one matrix", found=sample)
    file = read_gguf(path)
    with flow.prepare(model, log, "stream", requantize=True, adapter=adapter) as prepared:
        plan = _plan_of(file, prepared.blueprint, tuning or Tuning())
        header = compare_headers(file, plan, is_folder=prepared.source.repository is None)
        checks = (_read(file), header, _layout(file, plan))
        if checks[-1].state == "different":
            return Verification(path, plan.recipe, seed, checks)
        chosen = plan.tensors if sample is None else choose(plan.tensors, sample, seed)
        proofs = _derive(file, chosen, prepared.opened, log, threads, engine)
    return Verification(path, plan.recipe, seed, (*checks, _bytes(proofs, len(plan.tensors))), proofs)


def choose(tensors: Sequence[PlannedTensor], n: int, seed: int) -> tuple[PlannedTensor, ...]:
    """Choose *n* matrices by *seed*, one of each type first, and all tensors of one row, which cost nothing.

    Where there are more types than *n*, each has one all the same.  The result is in file order.
    """
    matrices = [tensor for tensor in tensors if tensor.n_rows > 1]
    drawn = sorted(matrices, key=lambda t: hashlib.sha256(f"{seed} {t.name}".encode()).digest())
    firsts = {tensor.type: tensor for tensor in reversed(drawn)}
    names = [t.name for t in firsts.values()] + [t.name for t in drawn if t is not firsts[t.type]]
    wanted = set(names[: max(n, len(firsts))])
    return tuple(tensor for tensor in tensors if tensor.n_rows == 1 or tensor.name in wanted)


def _read(file: GgufFile) -> Check:
    return Check("file", "proven", f"{len(file.tensors)} tensors, {len(file.metadata)} keys, read strictly")


def _plan_of(file: GgufFile, blueprint: Blueprint, tuning: Tuning) -> Plan:
    """Plan the file that *blueprint* gives by the recipe that *file* seems to follow."""
    file_type = file.value("general.file_type")
    names = [name for name, recipe in quant.recipes().items() if recipe.file_type == file_type]
    own = blueprint.finished.recipe if blueprint.finished else plans.AUTO
    planned = [plans.make_plan(blueprint, name, tuning) for name in names]
    if not tuning.describe() or not planned:
        planned.append(plans.make_plan(blueprint, own))
    types = [tensor.type for tensor in file.tensors]
    return next((plan for plan in planned if [t.type for t in plan.tensors] == types), planned[0])


def compare_headers(file: GgufFile, plan: Plan, *, is_folder: bool) -> Check:
    """Compare all keys and values with the plan's, in their order; a folder does not tell name, repository, commit."""
    ignored = _IDENTITY if is_folder else ()
    ours = [kv for kv in plan.metadata if kv.key not in ignored]
    theirs = [kv for kv in file.metadata.values() if kv.key not in ignored]
    detail = f"{len(ours)} keys and values"
    if is_folder:
        detail += "; name, repository and commit cannot be proven by a folder"
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            return Check("header", "different", _key_difference(mine, other))
    if len(ours) != len(theirs):
        longer, shorter = (ours, theirs) if len(ours) > len(theirs) else (theirs, ours)
        what = "missing" if longer is ours else "too many"
        return Check("header", "different", f"key {longer[len(shorter)].key} is {what}")
    return Check("header", "proven", detail)


def _key_difference(ours: KV, theirs: KV) -> str:
    if ours.key != theirs.key:
        return f"key {theirs.key} where {ours.key} should be"
    return f"{ours.key} is {_short(theirs)}, should be {_short(ours)}"


def _short(kv: KV) -> str:
    text = f"{kv.type.name.lower()} {kv.value!r}"
    return text if len(text) <= 80 else text[:77] + "..."


def _layout(file: GgufFile, plan: Plan) -> Check:
    """Compare name, shape, type, size and place of every tensor."""
    ours = [replace(t, view=None) for t in plan.tensors]
    theirs = [PlannedTensor(t.name, t.shape, t.type, t.n_bytes, t.offset - file.data_start) for t in file.tensors]
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            return Check("layout", "different", f"{_describe(other)} where {_describe(mine)} should be")
    if len(ours) != len(theirs):
        return Check("layout", "different", f"{len(theirs)} tensors instead of {len(ours)}")
    return Check("layout", "proven", f"recipe {plan.recipe}: type, shape, size and place of {len(ours)} tensors")


def _describe(tensor: PlannedTensor) -> str:
    return f"{tensor.name} {tensor.type} {list(tensor.shape)} at {tensor.offset}"


def _derive(
    file: GgufFile, tensors: Sequence[PlannedTensor], opened: OpenSource, log: Log, threads: int, engine: str
) -> tuple[TensorProof, ...]:
    """Encode *tensors* again and compare each with the file, tile by tile; only files that they need are waited for."""
    opened.prefer(weights_of(tensors))
    there = {tensor.name: tensor for tensor in file.tensors}
    found: dict[str, TensorProof] = {}
    total, done = sum(t.n_rows * t.n_cols for t in tensors), 0
    with TensorReader(ready=opened.wait) as reader, log.bar("deriving tensors again") as progress:
        for tensor, first, data in derive(tensors, reader, threads=threads, engine=engine):
            known = found.get(tensor.name)
            if known is None or known.equal:
                found[tensor.name] = _compare(file, there[tensor.name], first, data)
            done += len(data) * tensor.n_cols
            progress(done, total)
    return tuple(found[tensor.name] for tensor in tensors)


def _compare(file: GgufFile, tensor: GgufTensor, first: int, data: np.ndarray) -> TensorProof:
    n_rows, row_bytes = data.shape
    stored = np.empty((n_rows, row_bytes), np.uint8)
    file.read_tensor_bytes(tensor, first * row_bytes, stored)
    if np.array_equal(stored, data):
        return TensorProof(tensor.name, tensor.type, tensor.n_bytes, True)
    row, column = (int(i) for i in np.argwhere(stored != data)[0])
    offset = tensor.offset + (first + row) * row_bytes + column
    return TensorProof(tensor.name, tensor.type, tensor.n_bytes, False, first + row, offset)


def _bytes(proofs: Sequence[TensorProof], n_tensors: int) -> Check:
    different = [proof for proof in proofs if not proof.equal]
    if different:
        first = different[0]
        detail = f"tensor {first.name} ({first.type}) differs first in row {first.row}, at byte {first.offset:,}"
        more = f"; {len(different)} of {len(proofs)} derived tensors differ" if len(different) > 1 else ""
        return Check("data", "different", detail + more)
    n_bytes = sum(proof.n_bytes for proof in proofs)
    return Check("data", "proven", f"{len(proofs)} of {n_tensors} tensors derived again, {n_bytes:,} bytes equal")
