"""Made-up LoRA adapters and checkpoints as safetensors, and a plain reference of their merge."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float64): "F64",
}
CONFIG: dict[str, Any] = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "org/base", "bias": "none",
    "corda_config": None, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": 16, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "qalora_group_size": 16, "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj"], "target_parameters": None,
    "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False, "use_qalora": False,
    "use_rslora": False, "peft_version": "0.17.1",
}  # fmt: skip


def save_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write *tensors* in the order of their names."""
    header, at = {}, 0
    for name, array in sorted(tensors.items()):
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in sorted(tensors.items()))
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def save_adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """Write an adapter as PEFT does; *tensors* are named as in the model, without PEFT's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    save_safetensors(
        folder / "adapter_model.safetensors", {f"base_model.model.{name}": array for name, array in tensors.items()}
    )
    return folder


def merge(weight: np.ndarray, b: np.ndarray, a: np.ndarray, scale: float) -> np.ndarray:
    """Merge by the documented rule, one element at a time in effect: float32, rank by rank, rounded once."""
    delta = np.zeros(weight.shape, np.float32)
    for k in range(a.shape[0]):
        delta = delta + np.outer(b[:, k].astype(np.float32), a[k].astype(np.float32))
    return (weight.astype(np.float32) + delta * np.float32(scale)).astype(weight.dtype)
