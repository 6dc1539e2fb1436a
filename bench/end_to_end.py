"""Checkpoint to Q4_K_M: wall time and peak memory, against llama.cpp's own two steps.

    python -m bench.end_to_end [--layers N] [--rounds N] [--folder DIR] [--ours] [--json FILE]

The checkpoint is made here: Llama layout, BF16, normal weights, 1.1 billion of them unless told otherwise.  The peer
is llama-quantize from an F16 GGUF, and, where torch is installed, convert_hf_to_gguf.py in front of it; `--ours`
leaves both out.  `--folder` keeps the checkpoint and the F16 file for the next time.  Peak memory is the largest
resident set that the kernel saw, pages of mapped files included.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime.llama import require_llama

ROOT = Path(__file__).parent.parent
# Rows written at once, some megabytes as in a download: the system keeps a file in memory in pieces as it was written.
_PIECE = 1024
HIDDEN, FEED_FORWARD, VOCABULARY, HEADS, HEADS_KV = 2048, 5632, 32000, 32, 4


def make_checkpoint(folder: Path, n_layers: int, seed: int = 1) -> int:
    """Write a Llama checkpoint of normal BF16 weights with the demo's tokenizer, and return its number of weights."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models" / "demo" / name, folder)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_hidden_layers": n_layers,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS_KV, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = _shapes(n_layers)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            n_rows = shape[0] if len(shape) > 1 else 1
            for first in range(0, n_rows, _PIECE):
                size = min(_PIECE, n_rows - first), shape[-1]
                rows = random.standard_normal(size, np.float32) * np.float32(0.02)
                file.write((rows.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return offset // 2


def _shapes(n_layers: int) -> dict[str, list[int]]:
    width_kv = HIDDEN // HEADS * HEADS_KV
    shapes = {
        "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
        "lm_head.weight": [VOCABULARY, HIDDEN],
        "model.norm.weight": [HIDDEN],
    }
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": [HIDDEN],
            f"{at}.post_attention_layernorm.weight": [HIDDEN],
            f"{at}.self_attn.q_proj.weight": [HIDDEN, HIDDEN],
            f"{at}.self_attn.k_proj.weight": [width_kv, HIDDEN],
            f"{at}.self_attn.v_proj.weight": [width_kv, HIDDEN],
            f"{at}.self_attn.o_proj.weight": [HIDDEN, HIDDEN],
            f"{at}.mlp.gate_proj.weight": [FEED_FORWARD, HIDDEN],
            f"{at}.mlp.up_proj.weight": [FEED_FORWARD, HIDDEN],
            f"{at}.mlp.down_proj.weight": [HIDDEN, FEED_FORWARD],
        }
    return shapes


def measure(command: list[Any], **environment: str) -> dict[str, float]:
    """Run a command and return wall seconds, processor seconds, and peak memory in MB."""
    inherited = {**os.environ, **environment}
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)  # whoever installed it has it compiled
    started = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=inherited)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - started
    if status:
        raise SystemExit(f"{command} failed:\n{errors.decode(errors='replace')[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * unit / 1e6}


def run(n_layers: int, rounds: int, folder: Path, *, with_peers: bool = True) -> dict[str, Any]:
    """Measure ours and theirs in turn, *rounds* times, and return medians and ratios; *folder* is worked in."""
    checkpoint, f16, store = folder / f"checkpoint-{n_layers}", folder / f"f16-{n_layers}.gguf", folder / "store"
    if not checkpoint.exists():
        unfinished = checkpoint.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_checkpoint(unfinished, n_layers)
        unfinished.rename(checkpoint)
    n_weights = sum(math.prod(shape) for shape in _shapes(n_layers).values())
    tool = [sys.executable, "-m", "pipeline.cli"]
    # Its first run is what compiles Python and kernels, and brings the checkpoint into memory.
    first = measure([*tool, "convert", checkpoint, "-o", f16, "--dtype", "f16"])
    commands = {"ours": [*tool, "publish", checkpoint, "--quant", "Q4_K_M", "--proof", "none", "--json"]}
    if with_peers:
        commands |= _peers(f16, checkpoint, folder)
    samples: dict[str, list[dict[str, float]]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            samples[who].append(measure(command, GGUF_PIPELINE_STORE=str(store), XDG_DATA_HOME=str(folder / "data")))
            shutil.rmtree(store, ignore_errors=True)
    return _summary(n_weights, samples, first)


def _peers(f16: Path, checkpoint: Path, folder: Path) -> dict[str, list[Any]]:
    """Give the commands of llama.cpp's two steps; the first one needs torch."""
    llama = require_llama()
    quantizer = [llama.program("llama-quantize"), f16, folder / "theirs.gguf", "Q4_K_M", str(os.cpu_count())]
    converter = _converter(llama, checkpoint, folder / "peer-f16.gguf")
    return {"llama-quantize": quantizer} | ({"convert_hf_to_gguf": converter} if converter else {})


def _converter(llama: Any, checkpoint: Path, output: Path) -> list[Any] | None:
    if importlib.util.find_spec("torch") is None or llama.source_dir is None:
        return None
    return [
        sys.executable,
        llama.source_dir / "convert_hf_to_gguf.py",
        checkpoint,
        "--outfile",
        output,
        "--outtype",
        "f16",
    ]


def _summary(n_weights: int, samples: dict[str, list[dict[str, float]]], first: dict[str, float]) -> dict[str, Any]:
    medians = {
        who: {key: statistics.median(s[key] for s in runs) for key in runs[0]} for who, runs in samples.items() if runs
    }
    result: dict[str, Any] = {
        "weights": n_weights,
        "rounds": len(samples["ours"]),
        "cores": os.cpu_count(),
        **medians,
        "convert to F16": first,
    }
    ours, quantizer, converter = (medians.get(who) for who in ("ours", "llama-quantize", "convert_hf_to_gguf"))
    if ours and quantizer:
        result["wall / llama-quantize"] = ours["wall"] / quantizer["wall"]
        result["memory / llama-quantize"] = ours["peak_mb"] / quantizer["peak_mb"]
    if ours and quantizer and converter:
        result["wall / both steps"] = ours["wall"] / (converter["wall"] + quantizer["wall"])
    return result


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    weights, cores, rounds = result["weights"] / 1e9, result["cores"], result["rounds"]
    print(f"checkpoint -> Q4_K_M, {weights:.2f} B weights in BF16, {cores} cores, median of {rounds}")
    for who, figures in result.items():
        if isinstance(figures, dict):
            wall, cpu, peak = figures["wall"], figures["cpu"], figures["peak_mb"]
            print(f"  {who:<22} {wall:8.1f} s wall {cpu:8.1f} s cpu {peak:8.0f} MB peak")
    for name, ratio in result.items():
        if "/" in name:
            print(f"  {name:<28} {ratio:.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22, help="22 give 1.10 billion weights")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="work here, and keep what is made")
    parser.add_argument("--ours", action="store_true", help="leave out the peers")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        scratch = given.folder or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="gguf-pipeline-bench-", dir=os.environ.get("BENCH_DIR"))
        )
        result = run(given.layers, given.rounds, Path(scratch), with_peers=not given.ours)
    show(result)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
