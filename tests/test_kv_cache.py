"""The memory of a context: by hand for each kind of cache, and as llama.cpp itself reports it for every fixture."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.gguf import read_gguf
from pipeline.kv_cache import kv_cache_bytes
from pipeline.types import KV, ValueType, array, u32

FIXTURES = Path(__file__).parent / "fixtures" / "arch"


def _keys(arch: str, **values: Any) -> list[KV]:
    made = []
    for name, value in values.items():
        key = f"{arch}.{name.replace('__', '.')}"
        kind = ValueType.BOOL if isinstance(value, list) and isinstance(value[0], bool) else ValueType.UINT32
        made.append(u32(key, value) if isinstance(value, int) else array(key, kind, value))
    return made


LLAMA = {"block_count": 32, "embedding_length": 4096, "attention__head_count": 32, "attention__head_count_kv": 8}
GEMMA3 = {
    "block_count": 26, "embedding_length": 1152, "attention__head_count": 4, "attention__head_count_kv": 1,
    "attention__key_length": 256, "attention__value_length": 256, "attention__sliding_window": 512,
}  # fmt: skip
DEEPSEEK = {
    "block_count": 27, "embedding_length": 2048, "attention__head_count": 16, "attention__head_count_kv": 1,
    "attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192,
    "attention__value_length_mla": 128,
}  # fmt: skip
MAMBA = {"block_count": 24, "embedding_length": 768, "ssm__conv_kernel": 4, "ssm__inner_size": 1536,
         "ssm__state_size": 16}  # fmt: skip
MIXED = LLAMA | {"block_count": 4, "attention__head_count_kv": [0, 0, 8, 0]}
JAMBA, LFM2 = MIXED | {k: v for k, v in MAMBA.items() if "ssm" in k}, MIXED | {"shortconv__l_cache": 3}


@pytest.mark.parametrize(
    ("arch", "values", "context", "expected"),
    [
        ("llama", LLAMA, 8192, 2 * 2 * 32 * 8 * 128 * 8192),
        ("llama", LLAMA, 8000, 2 * 2 * 32 * 8 * 128 * 8192),  # rounded up to cells
        ("llama", LLAMA | {"attention__sliding_window": 4096}, 8192, 2 * 2 * 32 * 8 * 128 * 8192),  # not obeyed
        ("gpt2", {k: v for k, v in LLAMA.items() if "kv" not in k}, 1024, 2 * 2 * 32 * 32 * 128 * 1024),
        ("gemma3", GEMMA3, 32768, 2 * 2 * 256 * (4 * 32768 + 22 * 1024)),
        ("gemma3", GEMMA3, 600, 2 * 2 * 256 * 26 * 768),
        ("gemma3", GEMMA3 | {"attention__sliding_window_pattern": 2}, 4096, 2 * 2 * 256 * 13 * (4096 + 1024)),
        ("gemma3", GEMMA3 | {"attention__sliding_window_pattern": [True] * 26}, 4096, 2 * 2 * 256 * 26 * 1024),
        ("deepseek2", DEEPSEEK, 4096, 2 * 27 * 576 * 4096),
        ("mamba", MAMBA, 100_000, 4 * 24 * (3 * 1536 + 16 * 1536)),
        ("bert", {"block_count": 12}, 512, 0),
        ("jamba", JAMBA, 4096, 2 * 2 * 8 * 128 * 4096 + 4 * 3 * (3 * 1536 + 16 * 1536)),
        ("lfm2", LFM2, 4096, 2 * 2 * 8 * 128 * 4096 + 4 * 3 * 4096 * 2),
        ("t5", LLAMA | {"decoder_block_count": 32}, 8192, 2 * 2 * 32 * 8 * 128 * 8192),
    ],
)
def test_sizes_by_hand(arch: str, values: dict[str, Any], context: int, expected: int) -> None:
    """Plain and grouped heads, sliding windows, a latent, a state space, an encoder, mixtures, T5."""
    assert kv_cache_bytes(arch, _keys(arch, **values), context) == expected


@pytest.mark.parametrize(
    ("arch", "values"),
    [
        ("jamba", LLAMA | {"attention__head_count_kv": [8] * 31 + [0]}),
        ("nemotron_h", LLAMA | MAMBA),
        ("t5", LLAMA | {"decoder_block_count": 6}),
        ("mimo2", LLAMA | {"attention__sliding_window": 128}),
        ("gemma3", GEMMA3 | {"attention__sliding_window_pattern": [True] * 3}),
        ("llama", {"embedding_length": 4096}),
        ("llama", LLAMA | {"attention__head_count": 0}),
        ("mamba", {"block_count": 3}),
    ],
)
def test_what_the_header_does_not_tell_is_none(arch: str, values: dict[str, Any]) -> None:
    """A mixture of caches, a window whose layers are unknown, missing keys: no number rather than a wrong one."""
    assert kv_cache_bytes(arch, _keys(arch, **values), 4096) is None


@pytest.mark.native
@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.iterdir() if (path / "config.json").is_file()))
def test_llama_cpp_takes_as_much(name: str, tmp_path: Path, silent_log: Any, llama: Any) -> None:
    """What llama.cpp says it allocates for 3000 tokens, to the hundredth of a MiB that it prints."""
    flow.convert(str(FIXTURES / name), tmp_path / "model.gguf", "auto", silent_log)
    file = read_gguf(tmp_path / "model.gguf")
    ours = kv_cache_bytes(file.value("general.architecture"), file.metadata.values(), 3000)
    assert ours is not None
    if ours == 0:  # an encoder
        return
    # Its log is written by a thread that may not come to its end with the process: hence some tokens more.
    command = [llama.program("llama-completion"), "-m", file.path, "-c", "3000", "-n", "128", "--ignore-eos"]
    done = subprocess.run(
        [*command, "-p", "a", "-no-cnv", "-v", "--fit", "off"],
        capture_output=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    log = (done.stdout + done.stderr).decode("utf-8", "replace")
    caches = [float(size) for size in re.findall(r"size =\s*([\d.]+) MiB \(\s*\d+ cells", log)]
    assert sum(caches) == pytest.approx(ours / 2**20, abs=0.006 * len(caches)), log[-2000:]
