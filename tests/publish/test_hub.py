"""The target `hf:org/name` through the real client: one commit, a card, and what the Hub may refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from huggingface_hub import HfApi

from pipeline import flow
from pipeline.errors import AccessError, UsageError
from pipeline.gguf import read_gguf
from pipeline.job import Job
from pipeline.preview import describe_publication
from pipeline.publish import About, Published, Release, ReleaseEntry, open_target
from pipeline.types import Check

MakeEntry = Callable[..., ReleaseEntry]
CARD = "README.md"


@pytest.fixture
def hub(oracle: Callable[[str], ModuleType], tmp_path: Path) -> Iterator[Any]:
    """A Hub that takes uploads, and the client logged in to it."""
    with oracle("hub_harness").open_harness("hub", tmp_path) as opened:
        yield opened


@pytest.fixture
def publish(entry: MakeEntry, silent_log: Any, tmp_path: Path) -> Callable[..., Published]:
    """Publish one GGUF as hf:library/demo."""

    def run(
        text: str = "hf:library/demo",
        data: bytes = b"GGUF",
        tag: str = "Q4_K_M",
        about: About | None = None,
        **more: Any,
    ) -> Published:
        silent_log.notes.clear()
        made = replace(entry(tmp_path / f"{tag}.gguf", (tag, "latest"), data), **more)
        with open_target(text) as target:
            target.check("library", "demo", [tag])
            return target.publish(Release("library", "demo", (made,), about=about or About()), silent_log)

    return run


def test_one_commit_has_everything(hub: Any, publish: Callable[..., Published]) -> None:
    """GGUF, layers for Ollama, licences and the card arrive together, and the commands name the Hub."""
    published = publish(template="{{ .Prompt }}")
    assert set(hub.files) == {
        ".gitattributes", "demo-Q4_K_M.gguf", "template", "system", "params", "LICENSE", "LICENSE-2", CARD,
    }  # fmt: skip
    assert hub.files["params"] == b'{"num_ctx":4096,"stop":["\\u003c|im_end|\\u003e"],"temperature":0.7}\n'
    assert hub.files["template"] == b"{{ .Prompt }}"
    assert len(hub.uploads.summaries) == 1
    assert published.commands == ("ollama run hf.co/library/demo:Q4_K_M",)
    assert [str(name) for name in published.names] == ["hf.co/library/demo:Q4_K_M", "hf.co/library/demo:latest"]
    assert {check.state for check in published.checks} == {"proven"}


def test_the_card_says_what_it_is(hub: Any, publish: Callable[..., Published], subtests: pytest.Subtests) -> None:
    """Source, licence, types, errors, proof and the command stand in it; none of them is Markdown by accident."""
    about = About(
        "org/model", "abc123", "apache-2.0", errors={"Q4_K_M": (0.0721, "blk.2.ffn_up.weight")}, is_sample=True,
        checks=(Check("prompt", "proven", "3 conversations | rendered <b>alike</b>"),), notes=("a_note",),
    )  # fmt: skip
    publish(about=about, data=b"x" * 1_650_000)
    card = hub.files[CARD].decode()
    head, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert head.splitlines() == [
        'base_model: "org/model"', "base_model_relation: quantized", 'license: "apache-2.0"', "library_name: gguf",
        "pipeline_tag: text-generation", "tags:", "- gguf", "- ollama", "- llama.cpp",
    ]  # fmt: skip
    for line in (
        "# demo",
        "GGUF files of [org/model](https://huggingface.co/org/model) at commit `abc123`, for Ollama and llama.cpp, "
        "made by gguf-pipeline.",
        "    ollama run hf.co/library/demo:Q4_K_M",
        "| [demo-Q4_K_M.gguf](demo-Q4_K_M.gguf) | Q4_K_M | 1.65 MB | 5.03 | 7.2 % (blk.2.ffn_up.weight) |",
        r"- prompt: proven (3 conversations \| rendered \<b\>alike\</b\>)",
        r"- a\_note",
        "The checkpoint's own: [LICENSE](LICENSE), [LICENSE-2](LICENSE-2).",
    ):
        with subtests.test(line):
            assert line in text.splitlines()


def test_a_second_publication_joins_the_first(hub: Any, publish: Callable[..., Published]) -> None:
    """Another quantization is added to a repository that is there, and the card lists both; the rest is untouched."""
    publish()
    repo = hub.hub.repos["library/demo"]
    repo.commit({**hub.files, "notes.txt": b"mine"})
    publish(tag="Q8_0", data=b"GGUF in another type")
    assert {"demo-Q4_K_M.gguf", "demo-Q8_0.gguf", "notes.txt"} < set(hub.files)
    card = hub.files[CARD].decode()
    assert "| [demo-Q4_K_M.gguf](demo-Q4_K_M.gguf) | Q4_K_M |" in card
    assert "| [demo-Q8_0.gguf](demo-Q8_0.gguf) | Q8_0 |" in card
    assert len(hub.uploads.created) == 1
    assert len(hub.uploads.summaries) == 2


def test_a_card_of_somebody_elses_stays(hub: Any, publish: Callable[..., Published], silent_log: Any) -> None:
    """A README that we did not write is kept, and that is said."""
    publish()
    hub.hub.repos["library/demo"].commit({**hub.files, CARD: b"my own words"})
    publish(tag="Q8_0")
    assert hub.files[CARD] == b"my own words"
    assert "library/demo has a model card of its own, which stays" in silent_log.notes


def test_what_the_hub_has_no_place_for_is_said(hub: Any, publish: Callable[..., Published], silent_log: Any) -> None:
    """The Hub takes a template, a system prompt and parameters; of the rest the user hears."""
    publish(renderer="cohere", requires="0.34.0")
    assert silent_log.notes == ["the Hub has no place for MESSAGE, RENDERER, REQUIRES: left out"]


@pytest.mark.parametrize(("text", "is_private"), [("hf:library/demo", False), ("hf:library/demo+private", True)])
def test_a_new_repository_is_private_if_asked(
    hub: Any, publish: Callable[..., Published], text: str, is_private: bool
) -> None:
    """Without being asked, it is what the organization wants; one that is there stays as it is."""
    publish(text)
    assert hub.hub.repos["library/demo"].private is is_private
    publish("hf:library/demo", b"GGUF 2")
    assert hub.hub.repos["library/demo"].private is is_private


def test_a_large_file_goes_in_parts(hub: Any, publish: Callable[..., Published]) -> None:
    """Where the storage asks for parts, they arrive as one file."""
    hub.uploads.multipart = 1000
    data = bytes(range(256)) * 10
    publish(data=data)
    assert hub.files["demo-Q4_K_M.gguf"] == data


def test_nothing_is_sent_twice(hub: Any, publish: Callable[..., Published]) -> None:
    """A file that has arrived before is not uploaded again, and the same release makes no commit."""
    first = publish()
    hub.hub.requests.clear()
    assert publish().digests == first.digests
    assert not [path for method, path in hub.hub.requests if method == "PUT" or "/commit/" in path]


def test_a_passing_fault_is_borne(hub: Any, publish: Callable[..., Published]) -> None:
    """A storage that is in trouble once gets the file again, whole."""
    hub.hub.fail("/upload/", 503)
    publish()
    assert hub.files["demo-Q4_K_M.gguf"] == b"GGUF"
    assert len([path for method, path in hub.hub.requests if method == "PUT"]) == 2


def test_an_embedding_model_is_pulled(hub: Any, publish: Callable[..., Published]) -> None:
    """The card and the commands do not tell people to chat with it."""
    commands = publish(about=About(is_embedding=True)).commands
    assert commands[0] == "ollama pull hf.co/library/demo:Q4_K_M"
    assert commands[1].startswith("curl http://127.0.0.1:1/api/embed -d ")
    assert b"pipeline_tag: feature-extraction" in hub.files[CARD]
    assert b"ollama run" not in hub.files[CARD]


def test_a_dry_run_sends_nothing(hub: Any, demo: Path, silent_log: Any) -> None:
    """A dry run says what is there already, and makes no repository."""
    (would,) = describe_publication(Job(str(demo), ("Q4_K_M",), ("hf:library/tiny",)), silent_log)
    assert (would["targets"][0]["target"], would["targets"][0]["replaces"]) == ("hf:library/tiny", [])
    assert hub.hub.repos == {}
    flow.package(Job(str(demo), ("Q4_K_M",), ("hf:library/tiny",), proof="none"), silent_log)
    (would,) = describe_publication(Job(str(demo), ("Q4_K_M",), ("hf:library/tiny",)), silent_log)
    assert would["targets"][0]["replaces"] == ["Q4_K_M", "latest"]
    assert len(hub.uploads.summaries) == 1


def test_a_change_in_between_is_not_overwritten(hub: Any, publish: Callable[..., Published]) -> None:
    """If somebody commits meanwhile, nothing is visible of ours, and the hint is to publish again."""
    publish()
    hub.hub.fail("/commit/", 412)
    with pytest.raises(AccessError, match="publish again"):
        publish(data=b"GGUF 2")
    assert hub.files["demo-Q4_K_M.gguf"] == b"GGUF"


@pytest.mark.parametrize(("token", "says"), [("hf_wrong", "hf auth login"), (None, "with a token only")])
def test_a_token_that_is_none_is_told_at_once(
    hub: Any, publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch, token: str | None, says: str
) -> None:
    """Before any work the Hub is asked who we are."""
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AccessError, match=says):
        publish()
    assert hub.hub.repos == {}


def test_a_hub_out_of_reach_is_told(publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody at HF_ENDPOINT is an error of the network, not of ours."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(AccessError, match="can not be reached"):
        publish()


def test_the_whole_way(hub: Any, demo: Path, tmp_path: Path, silent_log: Any) -> None:
    """The demo is published, and what the real client downloads again is what the report says."""
    report = flow.package(Job(str(demo), ("Q8_0", "Q4_K_M"), ("hf:library/tiny-GGUF",), proof="none"), silent_log)
    path = HfApi(endpoint=hub.hub.url).hf_hub_download("library/tiny-GGUF", "tiny-Q8_0.gguf", local_dir=tmp_path)
    assert read_gguf(Path(path)).value("general.architecture") == "qwen2"
    assert Path(path).stat().st_size == report.files[0].size
    assert report.files[0].name == "hf.co/library/tiny-GGUF:Q8_0"
    card = HfApi(endpoint=hub.hub.url).hf_hub_download("library/tiny-GGUF", CARD, local_dir=tmp_path)
    assert "| Q4_K_M | 1.65 MB |" in Path(card).read_text()
    assert "% (blk." in Path(card).read_text()


@pytest.mark.parametrize("text", ["hf:", "hf:demo", "hf:a/b/c", "hf:or.g/name", "hf:-a/b", "hf:a/b+secret", "hf:a/b c"])
def test_no_repository_is_a_usage_error(text: str) -> None:
    """What can be no repository, or one that Ollama could not name, is refused with the form."""
    with pytest.raises(UsageError, match="hf:ORG/NAME"):
        open_target(text)
