"""`verify`: sound files are proven, and whatever was changed is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pipeline import flow, quant, verify, writing
from pipeline import plan as plans
from pipeline.blueprint import from_checkpoint
from pipeline.checkpoint import open_checkpoint
from pipeline.cli import main
from pipeline.errors import ProofError, UsageError
from pipeline.gguf import read_gguf
from pipeline.job import Job
from pipeline.store import Store, local_name
from pipeline.tokenizer import read_tokenizer
from pipeline.tuning import Tuning
from pipeline.types import PlannedTensor, Source

Make = Callable[[str], Path]
Verify = Callable[..., verify.Verification]

CHANGED = "blk.1.ffn_up.weight"


@pytest.fixture
def make(demo: Path, tmp_path: Path, silent_log: Any) -> Make:
    """Write the demo in a recipe, or "auto"."""

    def write(recipe: str) -> Path:
        path = tmp_path / f"{recipe}.gguf"
        flow.convert(str(demo), path, recipe, silent_log)
        return path

    return write


@pytest.fixture
def check(demo: Path, silent_log: Any) -> Verify:
    """Verify a file against the demo."""

    def run(path: Path, model: Path = demo, **options: Any) -> verify.Verification:
        return verify.verify_against(path, str(model), silent_log, **options)

    return run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Call the command line in this process, with a store of its own."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    return lambda *arguments: CliRunner().invoke(main, ["verify", *map(str, arguments)])


def _states(found: verify.Verification) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def _flip_row(path: Path, name: str, row: int, column: int = 5) -> int:
    """Change a byte of a row and return its place in the file."""
    tensor = read_gguf(path).tensor(name)
    at = tensor.offset + tensor.n_bytes // tensor.shape[0] * row + column
    _flip(path, at)
    return at


@pytest.mark.parametrize("recipe", ["auto", "F16", "F32", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K"])
@pytest.mark.parametrize("sample", [3, None])
def test_a_sound_file_is_proven(recipe: str, sample: int | None, make: Make, check: Verify) -> None:
    """The recipe is found out, header, layout and data are proven, quantized or not."""
    found = check(make(recipe), sample=sample)
    assert _states(found) == dict.fromkeys(("file", "header", "layout", "data"), "proven")
    assert found.recipe == ("BF16" if recipe == "auto" else recipe)
    matrices = [t for t in found.tensors if not t.name.endswith(("norm.weight", ".bias"))]
    assert len(matrices) == (sample or 22)
    assert len(found.tensors) == len(matrices) + 16
    found.refuse_differences()


@pytest.mark.parametrize("recipe", ["auto", "Q4_K_M"])
def test_a_changed_byte_is_found(recipe: str, make: Make, check: Verify) -> None:
    """The tensor, its first differing row and the place in the file are named."""
    path = make(recipe)
    _flip_row(path, CHANGED, 700)
    at = _flip_row(path, CHANGED, 601)
    found = check(path, sample=None)
    assert [(t.name, t.row, t.offset) for t in found.tensors if not t.equal] == [(CHANGED, 601, at)]
    with pytest.raises(ProofError, match=rf"{CHANGED} .* differs first in row 601, at byte {at:,}") as raised:
        found.refuse_differences()
    assert raised.value.exit_code == 3


def test_tiles_do_not_hide_the_row(make: Make, check: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is that of the tensor, not of the tile that was compared, and later rows do not replace it."""
    path = make("Q8_0")
    _flip_row(path, "token_embd.weight", 900)
    _flip_row(path, "token_embd.weight", 333)
    monkeypatch.setattr("pipeline.encode.TILE_ELEMENTS", 1 << 12)
    found = {tensor.name: tensor for tensor in check(path, sample=None, threads=3).tensors}
    assert found["token_embd.weight"].row == 333


def test_a_sample_sees_what_it_derives(make: Make, check: Verify) -> None:
    """A change is found by every seed that draws its tensor, by no other, and always with all tensors."""
    path = make("Q8_0")
    _flip_row(path, CHANGED, 0)
    for seed in range(4):
        found = check(path, sample=8, seed=seed)
        drawn = CHANGED in {tensor.name for tensor in found.tensors}
        assert _states(found)["data"] == ("different" if drawn else "proven")
    assert _states(check(path, sample=None))["data"] == "different"


def test_other_weights_are_not_the_source(make: Make, check: Verify, demo: Path, tmp_path: Path) -> None:
    """A checkpoint that differs in one weight is found by the tensor that is made of it."""
    path = make("F16")
    shutil.copytree(demo, tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    name = "model.layers.1.mlp.up_proj.weight"
    _flip(weights, open_checkpoint(tmp_path / "other").tensors[name].offset + 2 * 256 * 7)
    found = check(path, tmp_path / "other", sample=None)
    assert [(t.name, t.row) for t in found.tensors if not t.equal] == [(CHANGED, 7)]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [(b"2.6M", b"2.7M", "header"), (b"bos_token", b"xos_token", "header"), (b"ffn_up", b"ffn_xp", "layout")],
)
def test_a_changed_header_is_found(old: bytes, new: bytes, name: str, make: Make, check: Verify) -> None:
    """A value, a key, the name of a tensor: each is a difference that says which."""
    path = make("Q4_0")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    found = check(path)
    assert _states(found)[name] == "different"
    assert new.decode() in next(one.detail for one in found.checks if one.name == name)
    with pytest.raises(ProofError, match=name):
        found.refuse_differences()


def test_another_type_is_found(make: Make, check: Verify) -> None:
    """A file that claims a recipe but has another one's types differs in its layout, and no data is compared."""
    path = make("Q4_K_S")
    data = path.read_bytes()
    key = b"general.file_type\x04\x00\x00\x00"
    path.write_bytes(data.replace(key + b"\x0e", key + b"\x0f", 1))
    found = check(path)
    assert _states(found) == {"file": "proven", "header": "proven", "layout": "different"}
    assert "Q4_K [" in found.checks[-1].detail
    assert "blk.0.attn_v.weight Q5_K [" in found.checks[-1].detail


def test_a_file_type_of_no_recipe_is_found(make: Make, check: Verify) -> None:
    """A file that claims a type that no recipe has differs in its header, with options for a recipe as without."""
    path = make("Q4_K_S")
    data = path.read_bytes()
    key = b"general.file_type\x04\x00\x00\x00"
    path.write_bytes(data.replace(key + b"\x0e", key + b"\xfe", 1))
    for tuning in (Tuning(), Tuning(quant.Options(pure=True))):
        assert _states(check(path, tuning=tuning))["header"] == "different"


def test_a_folder_cannot_prove_a_commit(demo: Path, tmp_path: Path, silent_log: Any, check: Verify) -> None:
    """Against a folder, name, repository and commit are said to be unproven; against the Hub they must be equal."""
    checkpoint = open_checkpoint(demo)
    source = Source("Other-Name", demo, "org/other-name", "main", "c" * 40)
    tokenizer = read_tokenizer(demo, dict(checkpoint.text_config()))
    plan = plans.make_plan(from_checkpoint(checkpoint, tokenizer, source), "Q8_0")
    writing.write([plan], [tmp_path / "hub.gguf"], silent_log)
    found = check(tmp_path / "hub.gguf")
    assert set(_states(found).values()) == {"proven"}
    assert "cannot be proven by a folder" in found.checks[1].detail
    file = read_gguf(tmp_path / "hub.gguf")
    assert verify.compare_headers(file, plan, is_folder=False).state == "proven"
    other = plans.make_plan(from_checkpoint(checkpoint, tokenizer, Source("Other-Name", demo)), "Q8_0")
    assert verify.compare_headers(file, other, is_folder=False).state == "different"


def test_a_gguf_can_be_the_source(make: Make, check: Verify, tmp_path: Path, silent_log: Any) -> None:
    """A file that was quantized from a GGUF is proven by that GGUF, and each GGUF by itself."""
    auto, small = make("auto"), tmp_path / "small.gguf"
    flow.quantize(auto, small, "Q4_K_M", silent_log)
    for model in (auto, small):
        found = check(small, model, sample=None)
        assert set(_states(found).values()) == {"proven"}
        assert found.recipe == "Q4_K_M"
    _flip_row(small, CHANGED, 11)
    assert _states(check(small, auto, sample=None))["data"] == "different"


def test_a_merged_adapter_is_named(
    demo: Path, tmp_path: Path, silent_log: Any, check: Verify, oracle: Callable[[str], Any]
) -> None:
    """With the adapter the file is proven; without it the changed tensor is found."""
    rng = np.random.default_rng(0)
    module = "model.layers.1.mlp.up_proj"
    parts = {f"{module}.lora_A.weight": (2, 256), f"{module}.lora_B.weight": (768, 2)}
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in parts.items()}
    adapter = oracle("adapters").save_adapter(tmp_path / "tuned", tensors, r=2, lora_alpha=4)
    path = tmp_path / "tuned.gguf"
    flow.convert(str(demo), path, "auto", silent_log, adapter=adapter)
    assert set(_states(check(path, adapter=adapter, sample=None)).values()) == {"proven"}
    assert [tensor.name for tensor in check(path, sample=None).tensors if not tensor.equal] == [CHANGED]


@given(
    kinds=st.lists(st.sampled_from(["F32", "Q4_K", "Q6_K"]), min_size=1, max_size=40),
    n=st.integers(1, 50),
    seed=st.integers(-3, 3),
)
def test_a_sample_has_every_type_and_all_vectors(kinds: list[str], n: int, seed: int) -> None:
    """The size is as wanted, types are not missed, vectors are all there, and a seed always chooses the same."""
    tensors = [
        PlannedTensor(f"t{i}", (256,) if kind == "F32" else (2, 256), kind, 1, 0) for i, kind in enumerate(kinds)
    ]
    chosen = verify.choose(tensors, n, seed)
    matrices = [t for t in tensors if t.n_rows > 1]
    drawn = [t for t in chosen if t.n_rows > 1]
    assert chosen == verify.choose(tensors, n, seed) == tuple(t for t in tensors if t in chosen)
    assert {t.type for t in chosen} == set(kinds)
    assert len(chosen) - len(drawn) == len(tensors) - len(matrices)
    assert len(drawn) == min(len(matrices), max(n, len({t.type for t in matrices})))


def test_a_sample_is_not_empty(make: Make, check: Verify) -> None:
    """Asking for no matrix at all is a mistake."""
    with pytest.raises(UsageError, match="at least one"):
        check(make("F16"), sample=0)


def test_the_command_line(run: Callable[..., Result], make: Make, demo: Path) -> None:
    """Text for people, JSON for programs, exit code 3 and the place for a difference."""
    path = make("Q4_K_M")
    text = run(path, "--source", demo).stdout
    assert "[ok] data: proven (32 of 38 tensors derived again" in text
    found = json.loads(run(path, "--source", demo, "--all", "--json").stdout)
    assert (found["recipe"], len(found["tensors"])) == ("Q4_K_M", 38)
    _flip_row(path, CHANGED, 3)
    done = run(path, "--source", demo, "--all", "--json")
    assert done.exit_code == 3
    assert f"tensor {CHANGED} (Q4_K) differs first in row 3" in done.stderr
    assert [t["name"] for t in json.loads(done.stdout)["tensors"] if not t["equal"]] == [CHANGED]
    assert run(path).exit_code == 0  # no source: what a strict reader can see


def test_without_a_source_blobs_and_form_are_checked(
    run: Callable[..., Result], make: Make, silent_log: Any, tmp_path: Path
) -> None:
    """A publication's blobs are hashed; a file that is cut off is refused."""
    flow.package(Job("demo", ("Q4_0",), proof="none"), silent_log)
    assert "[ok] blobs: proven" in run("demo:Q4_0").stdout.replace("Q4_0 blobs", "blobs")
    _flip(Store(tmp_path / "registry").model_path(local_name("demo:Q4_0")), 1_000_000)
    done = run("demo:Q4_0")
    assert (done.exit_code, "blobs" in done.stderr) == (3, True)
    path = make("F16")
    path.write_bytes(path.read_bytes()[:-40])
    assert run(path).exit_code == 3
