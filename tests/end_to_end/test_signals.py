"""A run that is stopped or killed leaves nothing behind, and the next one works."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.native, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")]

_WIDE = 65536  # of the feed-forward layer, which makes 50 million weights
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def wide(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with one layer and a feed-forward layer so wide that writing it takes a while."""
    folder = tmp_path_factory.mktemp("wide")
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": 1, "intermediate_size": _WIDE}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((demo / name).read_bytes())
    shapes = {"gate_proj": [_WIDE, 256], "up_proj": [_WIDE, 256], "down_proj": [256, _WIDE]}
    random = np.random.default_rng(7)
    floats = (random.standard_normal(_WIDE * 256, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    made = {f"model.layers.0.mlp.{name}.weight": (shape, floats) for name, shape in shapes.items()}
    made |= _kept(demo / "model.safetensors", set(made))
    header, at = {}, 0
    for name, (shape, data) in made.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(data for _, data in made.values())
    return folder


def _kept(path: Path, replaced: set[str]) -> dict[str, tuple[list[int], bytes]]:
    """The tensors of the demo that stay as they are."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {name: row for name, row in json.loads(data[8:start]).items() if name != "__metadata__"}
    return {
        name: (row["shape"], data[start + row["data_offsets"][0] : start + row["data_offsets"][1]])
        for name, row in tensors.items()
        if name not in replaced and not name.startswith(("model.layers.1.", "model.layers.2."))
    }


@pytest.fixture
def start(llama: Any, tmp_path: Path, repository: Path) -> Iterator[Start]:
    """Start `gguf-pipeline ARGUMENTS...` in a home of its own; what is left of it at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def call(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        own = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GGUF_PIPELINE_LLAMA": str(llama.bin_dir)}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            env=own | environment,
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


def _until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait for what *condition* gives, as long as *process* lives."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def _files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file() and not path.name.startswith(".gguf-pipe"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_publication_leaves_nothing(
    start: Start, cli: Any, wide: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped in the middle of writing, it removes its files; killed, the next publication does; that one succeeds."""
    root = tmp_path / "registry"
    process = start("publish", wide, "--threads", "1", GGUF_PIPELINE_STORE=str(root))
    _until(lambda: [path for path in root.rglob("*.part") if path.stat().st_size], process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert any(name.endswith(".part") for name in _files(root))
    else:
        assert process.returncode == 128 + number, errors
        assert errors.splitlines()[-1] == "stopped"
        assert "Traceback" not in errors
        assert _files(root) == []
    cli("publish", "demo", "--proof", "none", GGUF_PIPELINE_STORE=str(root))
    left = [name for name in _files(root) if "pkg-" in name or name.endswith(".part")]
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_chat_ends_its_server(start: Start, published: Any, number: signal.Signals) -> None:
    """The server of a conversation ends with it, however that ends."""
    process = start("run", "demo:Q4_K_M", GGUF_PIPELINE_STORE=str(published.root))
    assert process.stderr is not None
    assert process.stderr.readline().startswith("running on ")
    (server,) = _children(process.pid)
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    _until(lambda: not _is_alive(server))


def _children(parent: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if _status(pid)[1:] == (parent,)]


def _is_alive(pid: int) -> bool:
    return _status(pid)[:1] not in {(), ("Z",)}


def _status(pid: int) -> tuple[Any, ...]:
    """State and parent of a process; nothing if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ()
    return fields[0], int(fields[1])
