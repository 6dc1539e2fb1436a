"""Plans as plain values: what is refused before the work, what is dropped, what a context needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from pipeline import flow, preview
from pipeline.cli import main
from pipeline.errors import ResourceError


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


@pytest.fixture
def described(demo: Path, silent_log: Any) -> dict[str, Any]:
    """The plan of the demo as Q8_0."""
    with flow.prepare(str(demo), silent_log) as prepared:
        return preview.describe_plans(prepared, ["Q8_0"], 100)[0]


def test_what_can_be_done_is_not_refused(described: dict[str, Any]) -> None:
    """The demo fits everywhere; its plan has a time and a memory figure."""
    preview.refuse_impossible([described])
    assert preview.problems([described, described]) == ()
    assert 0 < described["seconds"] < 60
    assert described["memory_bytes"] > 30e6
    assert described["kv_cache_bytes"] == 2 * 2 * 3 * 128 * 256
    assert described["run_bytes"] == described["file_bytes"] + described["kv_cache_bytes"]
    assert described["dropped"] == {"tensors": 0, "bytes": 0, "names": []}


def test_a_full_disk_is_refused_with_all_files_counted(described: dict[str, Any]) -> None:
    """Two files that fit one by one, but not together, are refused; so is a single one."""
    tight = described | {"disk_free": described["file_bytes"] + 1000}
    preview.refuse_impossible([tight])
    with pytest.raises(ResourceError, match="not enough disk space") as raised:
        preview.refuse_impossible([tight, tight])
    assert raised.value.exit_code == 5
    assert raised.value.expected == f"{2 * described['file_bytes']:,} bytes free"


def test_too_little_memory_is_refused(described: dict[str, Any]) -> None:
    """What would not fit into memory is refused, with the option that takes less."""
    with pytest.raises(ResourceError, match="--threads"):
        preview.refuse_impossible([described | {"together": {"memory_bytes": 1 << 50}}])


@pytest.mark.parametrize("command", [("plan",), ("publish", "--dry-run")])
def test_the_plan_is_shown_before_the_refusal(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk one still sees what would be needed; the exit code is 5, in JSON and in text."""
    monkeypatch.setattr("pipeline.preview.shutil.disk_usage", lambda _path: Usage(1 << 40, 1 << 40, 100))
    name, *options = command
    for form in ((), ("--json",)):
        done = CliRunner().invoke(main, [name, "demo", *options, *form])
        assert done.exit_code == 5
        assert "not enough disk space" in done.stderr
        assert "Q4_K_M" in done.stdout
        if form and name == "plan":
            assert "not enough disk space" in json.loads(done.stdout)[0]["refusals"][0]


def test_a_gguf_has_a_plan(tmp_path: Path, silent_log: Any) -> None:
    """Quantized from a GGUF, again from quantized weights, and as it is: each has time and memory."""
    path = tmp_path / "own.gguf"
    flow.convert("demo", path, "Q8_0", silent_log)
    with flow.prepare(str(path), silent_log, requantize=True) as prepared:
        again, own = preview.describe_plans(prepared, ["Q4_0", "Q8_0"], 512)
    assert own["file_bytes"] == path.stat().st_size
    assert again["seconds"] > 0
    assert min(own["memory_bytes"], again["memory_bytes"]) > 30e6
    assert own["kv_cache_bytes"] == again["kv_cache_bytes"] == 2 * 2 * 3 * 128 * 512


def test_dropped_tensors_are_named(demo: Path, tmp_path: Path) -> None:
    """A head that config.json ties to the embeddings goes into no tensor: named, with its size, and noted."""
    shutil.copytree(demo, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    first, stop = header["model.embed_tokens.weight"]["data_offsets"]
    end = len(data) - start
    head = {"dtype": "BF16", "shape": [1024, 256], "data_offsets": [end, end + stop - first]}
    text = json.dumps(header | {"lm_head.weight": head}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:] + data[start + first : start + stop])
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "model"), "--json"])
    assert json.loads(done.stdout)[0]["dropped"] == {
        "tensors": 1,
        "bytes": 524_288,
        "names": ["lm_head.weight"],
    }
    assert "dropped: 1 tensors of the checkpoint (524.29 kB): lm_head.weight" in (
        CliRunner().invoke(main, ["plan", str(tmp_path / "model")]).stdout
    )
