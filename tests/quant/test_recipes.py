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
from pipeline.errors import FormatError
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


def dry_run(llama: LlamaInstall, path: Path, recipe: str) -> list[tuple[str, str]]:
    """Ask llama-quantize for (name, type) of each tensor, in its order."""
    done = subprocess.run(
        [llama.program("llama-quantize"), "--dry-run", path, recipe], capture_output=True, check=True, text=True
    )
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
    ours = quant.assign_types(quant.recipes()[recipe], tensors, model.facts)
    assert list(zip([tensor.name for tensor in tensors], ours, strict=True)) == dry_run(llama, path, recipe)


@pytest.mark.native
@pytest.mark.parametrize("recipe", quant.recipes())
def test_file_type_is_llama_quantizes(recipe: str, llama: LlamaInstall, tmp_path: Path) -> None:
    """The number that llama-quantize writes into general.file_type is the recipe's."""
    Toy(n_layer=1).write(tmp_path / "in.gguf")
    command = [llama.program("llama-quantize"), tmp_path / "in.gguf", tmp_path / "out.gguf", recipe, "1"]
    subprocess.run(command, capture_output=True, check=True)
    written = gguf.GGUFReader(tmp_path / "out.gguf").fields["general.file_type"].contents()
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
