"""The recipes: every tensor gets the type that llama-quantize would give it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest

from pipeline import quant
from pipeline.errors import FormatError, UnsupportedError
from pipeline.gguf import read_gguf
from pipeline.quant import ModelFacts, TensorFacts
from pipeline.runtime.llama import LlamaInstall

DRY_RUN_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\w+), .*?(?:\((\w+)\))?$", re.MULTILINE)
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Toy:
    """A model of tensors with two rows each, enough for llama-quantize to choose types."""

    arch: str = "llama"
    n_layer: int = 11
    n_expert: int = 0
    n_head: int = 8
    n_head_kv: int = 8
    is_tied: bool = False
    width: int = 256
    feed_forward: int = 256
    dtype: str = "F32"
    parts: tuple[str, ...] = ATTENTION + FEED_FORWARD
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def facts(self) -> ModelFacts:
        """What the rules ask about it."""
        return ModelFacts(self.arch, self.n_layer, self.n_expert, self.n_head, self.n_head_kv)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors, in no order in particular."""
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (2, self.width), "output_norm.weight": (self.width,)}
        if not self.is_tied:
            shapes["output.weight"] = (2, self.width)
        for layer in range(self.n_layer):
            for part in self.parts:
                shapes |= self._part(f"blk.{layer}.{part}", part)
            shapes[f"blk.{layer}.attn_norm.weight"] = (self.width,)
            shapes[f"blk.{layer}.attn_q.bias"] = (self.width,)
        return shapes | self.extra

    def _part(self, name: str, part: str) -> dict[str, tuple[int, ...]]:
        width = self.feed_forward if part == "ffn_down" else self.width
        if self.n_expert and part in FEED_FORWARD:
            return {f"{name}_exps.weight": (2, 2, width), f"{name.rsplit('.', 1)[0]}.ffn_gate_inp.weight": (2, width)}
        return {f"{name}.weight": (2, width)}

    def tensors(self) -> list[TensorFacts]:
        """All tensors as llama-quantize orders them."""
        shapes = self.shapes()
        return [
            TensorFacts(name, shapes[name], "F32" if len(shapes[name]) == 1 else self.dtype)
            for name in sorted(shapes, key=quant.tensor_order_key)
        ]

    def write(self, path: Path) -> None:
        """Write it as a GGUF that llama-quantize reads."""
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_block_count(self.n_layer)
        writer.add_context_length(64)
        writer.add_embedding_length(self.width)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.n_head)
        writer.add_head_count_kv(self.n_head_kv)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        writer.add_vocab_size(2)
        if self.n_expert:
            writer.add_expert_count(self.n_expert)
            writer.add_expert_used_count(2)
        for name, shape in reversed(self.shapes().items()):  # not in llama-quantize's order
            is_half = self.dtype != "F32" and len(shape) > 1
            raw = gguf.GGMLQuantizationType[self.dtype] if is_half else None
            writer.add_tensor(name, np.zeros(shape, np.float16 if is_half else np.float32), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def toys() -> Iterator[tuple[str, Toy]]:
    """The models of the comparison, by name."""
    yield "llama", Toy()
    yield "llama, tied", Toy(is_tied=True)
    yield "llama, 32 layers, GQA", Toy(n_layer=32, n_head_kv=2)
    yield "llama, 3 layers", Toy(n_layer=3)
    yield "qwen2, tied", Toy("qwen2", n_layer=24, is_tied=True, n_head_kv=2)
    yield "qwen2, F16", Toy("qwen2", n_layer=28, dtype="F16")
    yield "llama, BF16", Toy(dtype="BF16")
    yield "70B", Toy(n_layer=80, n_head_kv=1, parts=("attn_v", "ffn_down"))
    yield "65B, no GQA", Toy(n_layer=80, parts=("attn_v",))
    yield "qwen2 72B", Toy("qwen2", n_layer=80, parts=("attn_v",))
    yield "olmo 70B", Toy("olmo", n_layer=80, parts=("attn_v",))
    yield "deci 70B", Toy("deci", n_layer=80, parts=("attn_v",))
    yield "jais2 70B", Toy("jais2", n_layer=68, parts=("attn_v",))
    yield "qwen3, 80 layers", Toy("qwen3", n_layer=80, parts=("attn_v",))
    yield "8 experts", Toy(n_expert=8, n_layer=32)
    yield "8 experts, 80 layers", Toy(n_expert=8, n_layer=80, n_head_kv=1, parts=("attn_v", "ffn_down"))
    yield "60 experts", Toy("qwen2moe", n_expert=60, n_layer=12)
    yield "falcon", Toy("falcon", n_layer=32, parts=("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
    yield "falcon, odd width", Toy("falcon", width=320, parts=("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
    yield "fused attention", Toy("phi3", parts=("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
    yield "width 896", Toy("qwen2", width=896, feed_forward=4864, is_tied=True)
    yield "width 48", Toy(width=48, feed_forward=80)
    yield "names", Toy(n_layer=2, extra=ODD_NAMES)


ODD_NAMES = {
    "blk.10x.weight": (2, 256),
    "blk.+1.attn_v.weight": (2, 256),
    "blk.1.attn_v_norm.weight": (2, 256),
    "blk.1.ffn_down.bias": (2, 256),
    "blk.0.cross_attn_v.weight": (2, 256),
    "blk.0.attn_kv_b.weight": (2, 256),
    "blk.0.one.weight": (1, 256),
    "blk.0.deep.weight": (2, 3, 256),
    "blk.0.experts_of_one_row.weight": (3, 1, 256),
    "per_layer_token_embd.weight": (2, 256),
    "per_layer_model_proj.weight": (2, 256),
    "position_embd.weight": (2, 256),
    "token_types.weight": (2, 256),
    "blk.0.ssm_conv1d.weight": (2, 256),
    "blk.0.time_mix_w1.weight": (2, 256),
    "v.patch_embd.weight": (2, 256),
    "weight": (2, 256),
    "five!": (2, 256),
    "six!!!": (2, 256),
    "Upper.weight": (2, 256),
    "ünicode.weight": (2, 256),
}


@pytest.fixture(scope="module", params=dict(toys()).items(), ids=lambda item: item[0])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, Path]:
    """One model, written."""
    made: Toy = request.param[1]
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    made.write(path)
    return made, path


def dry_run(llama: LlamaInstall, path: Path, recipe: str, *options: str | Path) -> list[tuple[str, str]] | None:
    """Ask llama-quantize for (name, type) of each tensor, in its order; None where it finds no type that fits."""
    done = subprocess.run(
        [llama.program("llama-quantize"), *options, "--dry-run", path, recipe],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    if done.returncode:
        assert "no tensor type fallback is defined" in done.stdout + done.stderr
        return None
    found = DRY_RUN_LINE.findall(_joined(done.stdout + done.stderr))
    return [(name, (new or old).upper()) for name, old, new in found]


def _joined(text: str) -> str:
    """Put the warning about a fallback, which comes between, out of the way."""
    return "\n".join(line for line in text.splitlines() if line.startswith("["))


@pytest.mark.native
@pytest.mark.parametrize("recipe", quant.recipes())
def test_types_equal_those_of_llama_quantize(recipe: str, toy: tuple[Toy, Path], llama: LlamaInstall) -> None:
    """Order and type of all tensors are llama-quantize's."""
    model, path = toy
    tensors = model.tensors()
    theirs = dry_run(llama, path, recipe)
    if theirs is None:
        with pytest.raises(UnsupportedError, match="no other type stands in"):
            quant.assign_types(quant.recipes()[recipe], tensors, model.facts)
        return
    ours = quant.assign_types(quant.recipes()[recipe], tensors, model.facts)
    assert list(zip([tensor.name for tensor in tensors], ours, strict=True)) == theirs


OPTIONS = {
    "pure": (["--pure"], quant.Options(pure=True)),
    "leave output": (["--leave-output-tensor"], quant.Options(leave_output=True)),
    "output": (["--output-tensor-type", "q5_1"], quant.Options(output_type="Q5_1")),
    "embeddings": (["--token-embedding-type", "bf16"], quant.Options(embedding_type="BF16")),
    "both": (
        ["--output-tensor-type", "F16", "--token-embedding-type", "Q4_1"],
        quant.Options(output_type="F16", embedding_type="Q4_1"),
    ),
    "patterns": (
        ["--tensor-type", r"blk\.[0-3]\.attn_V=q6_k", "--tensor-type", "attn_v=Q3_K", "--tensor-type", "embd=q4_0",
         "--tensor-type", "^output=iq4_nl"],
        quant.Options(
            ((r"blk\.[0-3]\.attn_V", "Q6_K"), ("attn_v", "Q3_K"), ("embd", "Q4_0"), ("^output", "IQ4_NL"))
        ),
    ),
    "patterns and pure": (
        ["--pure", "--tensor-type", "ffn_(up|gate)=tq2_0"], quant.Options((("ffn_(up|gate)", "TQ2_0"),), pure=True)
    ),
    "per layer": (
        ["--token-embedding-type", "q8_0", "--tensor-type", "per_layer=q5_k"],
        quant.Options((("per_layer", "Q5_K"),), embedding_type="Q8_0"),
    ),
}  # fmt: skip


@pytest.mark.native
@pytest.mark.parametrize("model", [Toy(n_layer=9), Toy(n_layer=9, is_tied=True), Toy(n_layer=2, extra=ODD_NAMES)])
@pytest.mark.parametrize("recipe", ["F16", "Q4_0", "Q4_K_M", "Q2_K", "IQ2_M", "MXFP4_MOE"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_change_types_as_in_llama_quantize(
    name: str, recipe: str, model: Toy, llama: LlamaInstall, tmp_path: Path
) -> None:
    """Overrides of types win over the rules, in llama-quantize's order, and shift what the rules count."""
    model.write(tmp_path / "toy.gguf")
    arguments, options = OPTIONS[name]
    tensors = model.tensors()
    ours = quant.assign_types(quant.recipes()[recipe], tensors, model.facts, options)
    theirs = dry_run(llama, tmp_path / "toy.gguf", recipe, *arguments)
    assert list(zip([tensor.name for tensor in tensors], ours, strict=True)) == theirs


def write_importance(path: Path, model: Toy) -> None:
    """Write an importance matrix of ones for all matrices of a model, as llama-imatrix does."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["made"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in model.shapes().items():
        if len(shape) > 1:
            n_matrices = shape[0] if len(shape) > 2 else 1
            writer.add_tensor(f"{name}.in_sum2", np.ones((n_matrices, shape[-1]), np.float32))
            writer.add_tensor(f"{name}.counts", np.ones((n_matrices, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.native
@pytest.mark.parametrize("model", [Toy(n_layer=16), Toy(n_layer=16, n_head_kv=2), Toy(n_layer=16, n_expert=8)])
@pytest.mark.parametrize("recipe", quant.recipes())
def test_an_importance_matrix_changes_types_as_in_llama_quantize(
    recipe: str, model: Toy, llama: LlamaInstall, tmp_path: Path
) -> None:
    """Some rules look whether there is an importance matrix."""
    model.write(tmp_path / "toy.gguf")
    write_importance(tmp_path / "imatrix.gguf", model)
    tensors, options = model.tensors(), quant.Options(has_importance=True)
    ours = quant.assign_types(quant.recipes()[recipe], tensors, model.facts, options)
    theirs = dry_run(llama, tmp_path / "toy.gguf", recipe, "--imatrix", tmp_path / "imatrix.gguf")
    assert list(zip([tensor.name for tensor in tensors], ours, strict=True)) == theirs


# The architectures of the snapshots' models.
SNAPSHOTS = {
    "deepseek-v3.1": "deepseek2",
    "gemma-3-4b-it": "gemma3",
    "glm-4.6v": "glm4moe",
    "gpt-oss-120b": "gpt-oss",
    "meta-llama-3.1-70b-instruct": "llama",
    "nvidia-nemotron-3-nano-30b-a3b": "nemotron_h_moe",
    "qwen3-0.6b": "qwen3",
    "qwen3-14b": "qwen3",
    "qwen3-coder-next": "qwen3next",
    "qwen3.5-397b-a17b": "qwen35moe",
    "qwen3.6-27b": "qwen35",
    "step-3.5-flash": "step35",
}


def snapshot(path: Path) -> tuple[dict[str, int], dict[str, dict[str, str]]]:
    """Read counts of the model, and for each recipe the types that are not its base type, by tensor."""
    counts: dict[str, int] = {}
    sections: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            counts |= {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
        elif line.startswith("["):
            section = sections.setdefault(line[1 : line.index("]")], {})
        elif line:
            name, kind = line.split()
            section[name] = kind.upper()
    return counts, sections


@pytest.mark.native
@pytest.mark.parametrize("model", SNAPSHOTS)
def test_types_of_real_models_are_those_of_llama_cpps_snapshots(model: str, llama: LlamaInstall) -> None:
    """For real models, llama.cpp's own tests state which tensors differ from the base type in each recipe.

    They state no shapes: a width is taken from the fall-back that Q6_K shows, three dimensions from MXFP4_MOE.
    """
    assert llama.source_dir is not None
    counts, sections = snapshot(llama.source_dir / "tests" / "snapshots" / f"{model}.schema")
    names = sorted({tensor for section in sections.values() for tensor in section}, key=quant.tensor_order_key)
    assert len(sections) > 25
    assert len(names) > 50
    n_cols = {name: {"Q8_0": 32, "F16": 8}.get(sections["Q6_K"].get(name, ""), 256) for name in names}
    is_stack = {name: sections["MXFP4_MOE"].get(name) != "Q8_0" for name in names}
    shapes = {name: (2, 2, n_cols[name]) if is_stack[name] else (2, n_cols[name]) for name in names}
    tensors = [TensorFacts(name, shapes[name], "F32") for name in names]
    facts = ModelFacts(
        SNAPSHOTS[model], counts["n_layer"], counts.get("n_expert", 0), counts["n_head"], counts["n_head_kv"]
    )
    wrong = {}
    for recipe in (recipe for recipe in quant.recipes().values() if recipe.name in sections):
        ours = quant.assign_types(recipe, tensors, facts)
        differing = {tensor: kind for tensor, kind in zip(names, ours, strict=True) if kind != recipe.base}
        if differing != sections[recipe.name]:
            wrong[recipe.name] = sorted(differing.items() ^ sections[recipe.name].items())[:6]
    assert wrong == {}


@pytest.mark.native
@pytest.mark.parametrize("recipe", quant.recipes())
def test_file_type_is_llama_quantizes(recipe: str, llama: LlamaInstall, tmp_path: Path) -> None:
    """The number that llama-quantize writes into general.file_type is the recipe's."""
    Toy(n_layer=1, parts=("attn_q",)).write(tmp_path / "in.gguf")
    command = [llama.program("llama-quantize"), "--tensor-type", "attn_q=q8_0", "--token-embedding-type", "q8_0"]
    command += ["--output-tensor-type", "q8_0", tmp_path / "in.gguf", tmp_path / "out.gguf", recipe, "1"]
    subprocess.run(command, capture_output=True, check=True)
    written = read_gguf(tmp_path / "out.gguf").metadata["general.file_type"].value
    assert quant.recipes()[recipe].file_type == written


def test_q4_k_m_of_eight_layers() -> None:
    """Of eight layers the first, the last and each third between get Q6_K for attn_v and ffn_down."""
    model = Toy(n_layer=8)
    tensors = model.tensors()
    types = quant.assign_types(quant.recipes()["Q4_K_M"], tensors, model.facts)
    by_name = dict(zip([tensor.name for tensor in tensors], types, strict=True))
    more = [layer for layer in range(8) if by_name[f"blk.{layer}.attn_v.weight"] == "Q6_K"]
    assert more == [0, 3, 6, 7]
    assert more == [layer for layer in range(8) if by_name[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert (by_name["output.weight"], by_name["token_embd.weight"]) == ("Q6_K", "Q4_K")
    assert by_name["output_norm.weight"] == "F32"


def test_tied_embeddings_are_the_output() -> None:
    """Without an output tensor the embeddings get its type."""
    model = Toy(n_layer=1, is_tied=True)
    types = quant.assign_types(quant.recipes()["Q4_0"], model.tensors(), model.facts)
    assert [kind for kind, tensor in zip(types, model.tensors(), strict=True) if "token_embd" in tensor.name] == [
        "Q6_K"
    ]


def test_rows_that_do_not_fit_fall_back() -> None:
    """Rows of 32 but not 256 elements get the fallback type, rows that no block fits F16."""
    model = ModelFacts("llama", 1, 0, 1, 1)
    for n_cols, expected in ((256, "Q5_K"), (96, "Q5_1"), (40, "F16")):
        tensors = [TensorFacts("blk.0.attn_q.weight", (2, n_cols), "BF16")]
        assert quant.assign_types(quant.recipes()["Q5_K_S"], tensors, model) == [expected]


@pytest.mark.parametrize("name", ["ffn_up_exps.weight", "blk.4.ffn_down_exps.weight", "blk.-1.ffn_gate.weight"])
def test_an_expert_tensor_without_its_layer_is_refused(name: str) -> None:
    """With experts a feed-forward tensor must name a layer of the model, as llama-quantize demands."""
    tensors = [TensorFacts(name, (2, 2, 256), "F16")]
    with pytest.raises(FormatError, match="layer"):
        quant.assign_types(quant.recipes()["Q4_K_M"], tensors, ModelFacts("llama", 4, 4, 1, 1))


def test_order_is_by_layer_then_by_bytes() -> None:
    """Tensors without a layer come first, layers by number, names by their bytes."""
    names = ["blk.10.a", "blk.2.b", "output", "blk.2.B", "é", "z", "blk.2", "blk.x"]
    assert sorted(names, key=quant.tensor_order_key) == [
        "blk.x", "output", "z", "é", "blk.2", "blk.2.B", "blk.2.b", "blk.10.a"
    ]  # fmt: skip
