"""The report beside a publication: where everything came from, and how near it is; reading it back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow, report, verify
from pipeline.errors import FormatError, UsageError
from pipeline.job import Job
from pipeline.store import Name, Store, local_name


def _publish(silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    made = flow.package(Job("demo", ("Q4_0", "F16"), proof="none", **options), silent_log)
    loaded: dict[str, Any] = json.loads(made.path.read_text(encoding="utf-8"))
    assert report.load(made.path) == loaded
    return loaded


def test_a_report_says_what_was_made_of_what(
    silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Path
) -> None:
    """Source files with digests, recipe, every tensor with type and error, tokenizer, timings, versions."""
    found = _publish(silent_log, tmp_path, monkeypatch)
    weights = next(one for one in found["sources"] if one["name"] == "model.safetensors")
    assert weights["sha256"] == hashlib.sha256((demo / "model.safetensors").read_bytes()).hexdigest()
    assert [file["recipe"] for file in found["files"]] == ["Q4_0", "F16"]
    rows = {row["name"]: row for row in found["files"][0]["tensors"]}
    assert len(rows) == 38
    assert rows["blk.0.attn_q.weight"]["type"] == "Q4_0"
    assert 0.98 < rows["blk.0.attn_q.weight"]["error"]["cosine"] < 1
    assert found["tokenizer"]["tokenizer.ggml.pre"] == "qwen2"
    assert found["tokenizer"]["tokenizer.ggml.tokens (length)"] == 1024
    assert list(found["timings"]) == ["read", "write", "hash sources", "prove", "publish"]
    assert sum(found["timings"].values()) == pytest.approx(found["seconds"], abs=0.01)
    assert (found["errors"], found["sample_every"], found["llama_cpp"]) == ("sample", 32, None)
    assert {"python", "numpy", "machine"} == set(found["tool"])


def test_errors_can_be_left_out(silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without measuring, each tensor still has its type and size, and the report says that nothing was measured."""
    found = _publish(silent_log, tmp_path, monkeypatch, errors="none")
    assert found["errors"] == "none"
    assert {row["error"] for row in found["files"][0]["tensors"]} == {None}
    with pytest.raises(UsageError, match="measure errors"):
        flow.package(Job("demo", ("Q4_0",), errors="some"), silent_log)


def test_measuring_changes_no_byte(silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same files with all rows measured as with none."""
    digests = {
        level: [file["digest"] for file in _publish(silent_log, tmp_path, monkeypatch, errors=level)["files"]]
        for level in ("all", "none")
    }
    assert digests["all"] == digests["none"]


def test_a_gguf_has_itself_as_source(silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF that is published as it is keeps all values; its own digest is the source's and the file's."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    flow.convert("demo", tmp_path / "own.gguf", "F16", silent_log)
    made = flow.package(Job(str(tmp_path / "own.gguf"), ("F16", "Q8_0"), proof="none"), silent_log)
    digest = hashlib.sha256((tmp_path / "own.gguf").read_bytes()).hexdigest()
    assert [(one.name, one.sha256) for one in made.sources] == [("own.gguf", digest)]
    assert made.files[0].digest == f"sha256:{digest}"
    errors = [[row.error and row.error.rmse for row in file.tensors] for file in made.files]
    assert set(errors[0]) == {0.0}
    assert sum(1 for rmse in errors[1] if rmse) == 22


def test_the_commit_and_the_digests_of_the_hub_are_kept(
    hub: Any, demo: Path, silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a repository the commit is named; weights that stream in have the digest that the Hub and the file have."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    files = {name: (demo / name).read_bytes() for name in names}
    hub.repo("org/demo", files, lfs=(".safetensors",))
    made = flow.package(Job("org/demo", ("Q8_0",), proof="none"), silent_log)
    assert made.source["repository"] == "org/demo"
    assert len(made.source["commit"]) == 40
    found = {one.name: one for one in made.sources}
    assert {name: one.sha256 for name, one in found.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    assert (found["model.safetensors"].by, found["config.json"].by) == ("cache", "content")
    path = Store(tmp_path / "registry").model_path(local_name("demo:Q8_0"))
    verified = verify.verify_against(path, "org/demo", silent_log)
    assert {check.state for check in verified.checks} == {"proven"}
    assert "cannot be proven" not in verified.checks[1].detail


def test_a_report_is_found_by_the_manifest(silent_log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each quantization and "latest" lead to the same report, a name that was published again to the newer one."""
    _publish(silent_log, tmp_path, monkeypatch)
    store = Store(tmp_path / "registry")
    manifests = {entry.name.tag: entry.digest for entry in store.list()}
    for tag in ("Q4_0", "latest", "F16"):
        found = report.find(manifests[tag])
        assert found is not None
        assert found["model"] == "demo"
    assert report.find("sha256:" + "0" * 64) is None
    assert store.read_manifest(local_name("demo:F16"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 1}', '{"files": [{}]}', "\xff", "[" * 100_000])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    """Any other file is an error of ours."""
    path = tmp_path / "other.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="no"):
        report.load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        report.load(tmp_path / "missing.json")


def test_one_file_for_each_name() -> None:
    """No two names share a report, and the longest name has one that a file system takes."""
    names = ["a_b/c:t", "a/b_c:t", "a/b:c_t", "a/b:c"]
    paths = {report.report_path(Name.parse(f"localhost:11500/{name}")) for name in names}
    assert len(paths) == len(names)
    longest = report.report_path(Name.parse(f"localhost:11500/{'n' * 80}/{'m' * 80}:{'t' * 80}"))
    assert len(longest.name) < 200
    assert report.report_path(Name.parse("demo:Q4_K_M")).name == "localhost_11500_library_demo_Q4_K_M.json"
