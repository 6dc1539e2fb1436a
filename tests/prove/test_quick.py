"""The proof `quick`: what it proves, what it says it did not check, and that a bad file is never published."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow, prove, writing
from pipeline.errors import PipelineError, ProofError
from pipeline.job import Job
from pipeline.store import Store, hash_file
from pipeline.types import Check

Item = tuple[str, Path, Any]


@pytest.fixture
def item(tmp_path: Path, silent_log: Any) -> Item:
    """The demo in Q4_0, as it is about to be published."""
    path = tmp_path / "demo.gguf"
    with flow.prepare("demo", silent_log) as prepared:
        plan = flow.plans.make_plan(prepared.blueprint, "Q4_0")
        return "Q4_0", path, writing.write([plan], [path], silent_log)[0]


@pytest.fixture
def prompting(demo: Path) -> prove.Prompting:
    """How the demo prompts."""
    template = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    return prove.Prompting(prove.Template(template, None, "", "<|im_end|>"), tokenizer=demo)


def _files(item: Item, prompting: prove.Prompting) -> dict[str, Check]:
    return {check.name: check for check in prove.files("quick", [item], prompting, lambda _line: None)}


@pytest.mark.native
def test_a_good_file_is_proven(item: Item, prompting: prove.Prompting, llama: Any) -> None:
    """Content, file, load and prompt are proven, and the runtime is named."""
    checks = _files(item, prompting)
    assert {name: check.state for name, check in checks.items()} == dict.fromkeys(
        ("Q4_0 blob", "Q4_0 file", "Q4_0 load", "tokenizer", "prompt"), "proven"
    )
    assert llama.version in checks["Q4_0 load"].detail


@pytest.mark.native
@pytest.mark.parametrize(("name", "detail"), [("bert", "a vector of 64 numbers"), ("roberta", "how to pool")])
def test_an_embedding_model_makes_a_vector(
    name: str, detail: str, repository: Path, llama: Any, silent_log: Any, tmp_path: Path
) -> None:
    """An encoder is loaded and asked for a vector, if it says how to pool, where others are asked for tokens."""
    path = tmp_path / "encoder.gguf"
    with flow.prepare(str(repository / "tests" / "fixtures" / "arch" / name), silent_log) as prepared:
        plan = flow.plans.make_plan(prepared.blueprint, "Q8_0")
        blob = writing.write([plan], [path], silent_log)[0]
    checks = _files(("Q8_0", path, blob), prove.Prompting(None))
    assert {name: check.state for name, check in checks.items()} == dict.fromkeys(
        ("Q8_0 blob", "Q8_0 file", "Q8_0 load"), "proven"
    )
    assert detail in checks["Q8_0 load"].detail


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "state", "part"),
    [
        (
            {"template": "{% for m in messages %}{{ m.content }}{% endfor %}"},
            "different",
            "13 of 13 conversations differ, first 'one question', at character 0, token 0: "
            "expected 'Hello!', llama.cpp gives '<|im_start|>user",
        ),
        ({"template": "{% for m in messages %}{{ m.content"}, "different", "the chat template fails"),
        (
            {"template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
            "different",
            "the chat template fails",
        ),
        ({"template": "{{ messages[0].nothing.at_all }}"}, "different", "the chat template fails"),
        ({"template": "{{ raise_exception('no') }}"}, "not checked", "refuses every conversation"),
        ({"template": None}, "not checked", "has no chat template"),
        ({"go_template": "{{ .Prompt }}"}, "not checked", "TEMPLATE"),
    ],
)
def test_each_kind_of_prompt_has_its_answer(
    item: Item, prompting: prove.Prompting, llama: Any, change: dict[str, Any], state: str, part: str
) -> None:
    """A template that differs, fails or hangs is a difference; what cannot be compared is not called proven."""
    assert llama
    if change.get("template"):
        change = {"template": prove.Template(change["template"], None, "", "<|im_end|>")}
    check = _files(item, dataclasses.replace(prompting, **change))["prompt"]
    assert check.state == state
    assert part in check.detail


@pytest.mark.native
def test_a_file_that_does_not_load_is_a_difference(item: Item, prompting: prove.Prompting, llama: Any) -> None:
    """llama.cpp's refusal becomes a check with the last lines of its log."""
    assert llama
    recipe, path, _ = item
    data = path.read_bytes().replace(b"qwen2.attention.head_count_kv", b"qwen2.attention.head_count_xx")
    path.write_bytes(data)
    checks = _files((recipe, path, hash_file(path)), prompting)
    assert checks["Q4_0 load"].state == "different"
    assert "could not load" in checks["Q4_0 load"].detail


def test_a_flipped_bit_is_a_difference(item: Item, prompting: prove.Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not what its digest says stops the publication."""
    monkeypatch.delenv("GGUF_PIPELINE_LLAMA", raising=False)
    data = bytearray(item[1].read_bytes())
    data[-1] ^= 1
    item[1].write_bytes(data)
    checks = _files(item, dataclasses.replace(prompting, template=None))
    assert checks["Q4_0 blob"].state == "different"
    with pytest.raises(ProofError, match="Q4_0 blob"):
        prove.refuse_differences("demo", list(checks.values()))


def test_no_proof_says_so(item: Item, prompting: prove.Prompting) -> None:
    """Without a proof the report has the command that would give one."""
    (check,) = prove.files("none", [item], prompting, lambda _line: None)
    assert check.state == "not checked"
    assert check.command is not None
    prove.refuse_differences("demo", (check,))


@pytest.mark.native
def test_a_bad_model_never_replaces_a_good_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_log: Any, demo: Path, llama: Any
) -> None:
    """When the proof fails, the name still has what it had before, and no file is left over."""
    assert llama
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    flow.package(Job("demo", ("Q4_0",)), silent_log)
    store = Store(tmp_path / "registry")
    before = {str(entry.name): entry.digest for entry in store.list()}
    files = sorted(path.name for path in store.blobs_dir.iterdir())
    shutil.copytree(demo, tmp_path / "demo")
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    config["num_attention_heads"], config["num_key_value_heads"] = 8, 4
    (tmp_path / "demo" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "demo" / "chat_template.jinja").write_text("{{ messages[0].nothing.at_all }}", encoding="utf-8")
    with pytest.raises(PipelineError):
        flow.package(Job(str(tmp_path / "demo"), ("Q4_0",)), silent_log)
    assert {str(entry.name): entry.digest for entry in store.list()} == before
    assert sorted(path.name for path in store.blobs_dir.iterdir()) == files


def test_force_publishes_what_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_log: Any, demo: Path
) -> None:
    """Without it a template that fails stops the publication; with it the report keeps the difference."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    shutil.copytree(demo, tmp_path / "bad")
    (tmp_path / "bad" / "chat_template.jinja").write_text("{{ messages[0].nothing.at_all }}", encoding="utf-8")
    job = Job(str(tmp_path / "bad"), ("Q4_0",))
    with pytest.raises(ProofError, match="--force"):
        flow.package(job, silent_log)
    silent_log.notes.clear()
    report = flow.package(dataclasses.replace(job, force=True), silent_log)
    assert [check.name for check in report.checks if check.state == "different"] == ["prompt"]
    assert any("published although prompt is different" in note for note in silent_log.notes)
    assert {entry.name.tag for entry in Store(tmp_path / "registry").list()} == {"Q4_0", "latest"}
