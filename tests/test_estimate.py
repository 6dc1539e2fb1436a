"""Estimates before the work: memory near what is measured, time that follows the weights."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import estimate, flow
from pipeline import plan as plans
from pipeline.tuning import Importance, Tuning

WIDTH, FEED_FORWARD, LAYERS = 1024, 2816, 4


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it, as far as they are still there."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _memory(pid: int, *keys: str) -> int:
    """Add up lines of what the system says of a process's memory, in bytes."""
    with contextlib.suppress(OSError):
        said = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return sum(1024 * int(re.findall(rf"^{key}: +(\d+) kB$", said, re.MULTILINE)[0]) for key in keys)
    return 0


def _together(pid: int) -> int:
    """Return what a process and all below it hold; what the others may share with it counts once."""
    first, *others = _tree(pid)
    return _memory(first, "Rss") + sum(_memory(one, "Private_Clean", "Private_Dirty") for one in others)


@pytest.fixture(scope="module")
def checkpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint of 53 million BF16 weights with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "llama-53m"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": WIDTH,
        "intermediate_size": FEED_FORWARD, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 1024, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = {"model.embed_tokens": [1024, WIDTH], "lm_head": [1024, WIDTH], "model.norm": [WIDTH]}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}": [WIDTH] for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{at}.self_attn.{name}_proj": [WIDTH, WIDTH] for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj": [FEED_FORWARD, WIDTH] for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": [WIDTH, FEED_FORWARD]}
    header, n_bytes = {}, 0
    for name, shape in shapes.items():
        end = n_bytes + 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [n_bytes, end]}
        n_bytes = end
    text = json.dumps(header).encode()
    weights = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(np.float32).view(np.uint32) >> 16
    block = weights.astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in range(n_bytes, 0, -len(block)):
            file.write(block[:left])
    return folder


@pytest.fixture
def peak(tmp_path: Path, repository: Path) -> Callable[..., tuple[int, str]]:
    """Run the command line and return the most memory that its processes held together, and its output."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GGUF_PIPELINE_STORE": str(tmp_path / "registry")},
            cwd=repository,
            stdout=subprocess.PIPE,
            text=True,
        )
        most = 0
        while True:
            most = max(most, _together(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=0.005)
                break
        assert process.returncode == 0
        return most, output

    return run


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("recipes", "threads", "engine"),
    [
        ("Q4_K_M", 1, "numpy"),
        ("Q4_K_M", 4, "fast"),
        ("BF16", 2, "fast"),
        ("Q8_0", 2, "auto"),
        ("Q4_K_M,Q5_K_M,Q8_0", 4, "numpy"),
        ("Q4_K_M,Q8_0,BF16,Q3_K_M,Q6_K", 1, "fast"),
    ],
)
def test_memory_is_what_publish_takes(
    recipes: str, threads: int, engine: str, checkpoint: Path, peak: Callable[..., tuple[int, str]]
) -> None:
    """The figure of `plan` is within 15 % of the peak of `publish`, all its processes and libraries included."""
    options = ("--quant", recipes, "--threads", threads, "--engine", engine, "--json")
    planned = json.loads(peak("plan", checkpoint, *options)[1])
    measured, _ = peak("publish", checkpoint, *options, "--proof", "none")
    assert [one["together"] for one in planned] == [planned[0]["together"]] * len(planned)
    assert planned[0]["together"]["memory_bytes"] == pytest.approx(measured, rel=0.15)
    assert max(one["memory_bytes"] for one in planned) < 1.02 * planned[0]["together"]["memory_bytes"]
    assert planned[0]["together"]["file_bytes"] == sum(one["file_bytes"] for one in planned)


def _plans(folder: Path, silent_log: Any, *recipes: str) -> list[Any]:
    with flow.prepare(str(folder), silent_log) as prepared:
        return [plans.make_plan(prepared.blueprint, recipe) for recipe in recipes]


def test_time_follows_the_work(checkpoint: Path, demo: Path, silent_log: Any) -> None:
    """More weights, more bits to search and fewer workers take longer; a type that two files want counts once."""
    (q4, q8), (small,) = _plans(checkpoint, silent_log, "Q4_K_M", "Q8_0"), _plans(demo, silent_log, "Q4_K_M")

    def seconds(planned: list[Any], threads: int = 0) -> float:
        return estimate.seconds_to_write(planned, threads, "numpy")

    one = seconds([q4], 1)
    assert one == pytest.approx(seconds([small], 1) * 53.5 / 2.62, rel=0.35)
    assert one > 3 * seconds([q8], 1) > 0
    assert one < seconds([q4, q8], 1) < 1.5 * one
    assert seconds([q4, q4], 1) < 1.2 * one
    assert seconds([q4]) <= one
    assert estimate.seconds_to_write([q4], 1, "fast") < one / 2


def test_types_of_libggml_need_no_library(
    demo: Path, silent_log: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plan with types that libggml encodes is estimated where llama.cpp is not built, without making their grids."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with flow.prepare(str(demo), silent_log) as prepared:
        columns = {d.name: np.ones(d.shape[-1], np.float32) for d in prepared.blueprint.drafts if len(d.shape) > 1}
        tuning = Tuning(importance=Importance(tmp_path / "imatrix", "", (), 0, columns))
        planned = [plans.make_plan(prepared.blueprint, recipe, tuning) for recipe in ("IQ1_S", "IQ2_XXS")]
    for plan in planned:
        assert 0.5 < estimate.seconds_to_write([plan], 1, "numpy") < 10


def test_memory_follows_the_workers(checkpoint: Path, silent_log: Any) -> None:
    """Each worker more takes some memory; what this process holds already counts."""
    (q4,) = _plans(checkpoint, silent_log, "Q4_K_M")
    figures = [estimate.bytes_to_write([q4], threads) for threads in (32, 64, 128)]
    assert figures[1] - figures[0] == pytest.approx((figures[2] - figures[1]) / 2, rel=0.2)
    assert figures[0] > 32 * 8e6
