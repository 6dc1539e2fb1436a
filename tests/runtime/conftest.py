"""A small chat model as GGUF, written by the `gguf` package: the runtime's tests need nothing but the runtime."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors import safe_open

from pipeline.runtime.pin import Pin

_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def _name(source: str) -> str:
    """Give the GGUF name of a Qwen2 tensor."""
    if source.startswith("model.layers."):
        _, _, layer, rest = source.split(".", 3)
        return f"blk.{layer}.{_LAYER_NAMES[rest]}"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[source]


def _write_vocabulary(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = dict(tokenizer["model"]["vocab"])
    special = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    tokens.update(special)
    ordered = sorted(tokens, key=tokens.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(ordered)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in ordered])
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    )
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _write_demo(demo: Path, path: Path, *, pooling: bool) -> Path:
    """Write the demo checkpoint as F16 GGUF; with a pooling type, llama.cpp takes it for an embedding model."""
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if pooling:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    _write_vocabulary(writer, demo)
    with safe_open(demo / "model.safetensors", framework="numpy") as weights:
        for source in weights.keys():  # noqa: SIM118  # not a mapping
            values = weights.get_tensor(source)
            assert values.dtype in {np.dtype(bfloat16), np.dtype(np.float32), np.dtype(np.float16)}
            writer.add_tensor(_name(source), values.astype(np.float32 if values.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def demo_gguf(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as F16 GGUF."""
    return _write_demo(demo, tmp_path_factory.mktemp("gguf") / "demo.gguf", pooling=False)


@pytest.fixture(scope="session")
def pooled_gguf(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as an embedding model."""
    return _write_demo(demo, tmp_path_factory.mktemp("gguf") / "pooled.gguf", pooling=True)


_CMAKE = """
cmake_minimum_required(VERSION 3.14...3.28)
project(stand_in C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml SHARED ggml.c)
add_executable(llama-server main.c)
target_link_libraries(llama-server ggml)
target_compile_definitions(llama-server PRIVATE COMMIT="${LLAMA_BUILD_COMMIT}")
"""
_LIBRARY = "int answer(void) { return ANSWER; }\n"
_MAIN = '#include <stdio.h>\nint answer(void);\nint main(void) { printf("commit %s\\n", COMMIT); return answer(); }\n'
# A build backend inside the package, so that pip can read its metadata without fetching anything.
_BACKEND = """
import os
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    info = os.path.join(metadata_directory, "stand_in-1.0.dist-info")
    os.makedirs(info)
    with open(os.path.join(info, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: stand-in\\nVersion: 1.0\\n")
    return "stand_in-1.0.dist-info"
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise SystemExit("nothing may be built while fetching")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pin:
    """The pin of a tiny package with the shape of the real one; an empty cache folder, and pip sees nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": _BACKEND,
        "PKG-INFO": "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\n",
        "vendor/llama.cpp/CMakeLists.txt": _CMAKE,
        "vendor/llama.cpp/ggml.c": _LIBRARY,
        "vendor/llama.cpp/main.c": _MAIN,
    }
    package = tmp_path / "packages" / "stand_in-1.0.tar.gz"
    package.parent.mkdir()
    with tarfile.open(package, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"stand_in-1.0/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return Pin(
        package="stand-in",
        version="1.0",
        file=package.name,
        sha256=hashlib.sha256(package.read_bytes()).hexdigest(),
        folder="vendor/llama.cpp",
        commit="0123456789abcdef0123456789abcdef01234567",
        ggml_version="0.0.0",
        targets=("ggml", "llama-server"),
        options=("CMAKE_BUILD_TYPE=Release", "CMAKE_C_FLAGS=-DANSWER=0"),
    )
