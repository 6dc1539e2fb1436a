"""What every publish target must do, run over the table of targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError, PipelineError, UsageError
from pipeline.publish import Published, Release, ReleaseEntry, open_target, redacted, targets

MakeEntry = Callable[..., ReleaseEntry]
MakeRelease = Callable[..., Release]

GOOD, BETTER, OTHER = b"GGUF", b"GGUF, better", b"GGUF in another type"


@pytest.fixture
def publish(harness: Any, entry: MakeEntry, release: MakeRelease, silent_log: Any) -> Callable[..., Published]:
    """Publish two files as library/demo, Q4_K_M (and latest) and Q8_0."""

    def run(first: bytes = GOOD, second: bytes = OTHER) -> Published:
        with open_target(harness.text) as target, target.staging([len(first), len(second)]) as paths:
            made = release(entry(paths[0], data=first), entry(paths[1], ("Q8_0",), second))
            return target.publish(made, silent_log)

    return run


def test_a_release_becomes_visible(harness: Any, publish: Callable[..., Published]) -> None:
    """All tags of all entries are there, each blob reads back as what was published, and everything is proven."""
    published = publish()
    assert [(name.namespace, name.model, name.tag) for name in published.names] == [
        ("library", "demo", "Q4_K_M"),
        ("library", "demo", "latest"),
        ("library", "demo", "Q8_0"),
    ]
    visible = harness.visible()
    assert set(visible) == {"library/demo:Q4_K_M", "library/demo:latest", "library/demo:Q8_0"}
    for tag, data in (("Q4_K_M", GOOD), ("latest", GOOD), ("Q8_0", OTHER)):
        assert harness.blob(visible[f"library/demo:{tag}"][0]) == data
    assert "different" not in {check.state for check in published.checks}
    assert {check.name: check.state for check in published.checks}["Q8_0 layers"] == "proven"
    assert any("demo:Q8_0" in command for command in published.commands)


def test_the_texts_are_published(
    harness: Any, entry: MakeEntry, release: MakeRelease, silent_log: Any, tmp_path: Path
) -> None:
    """What the Modelfile says arrives byte for byte, beside a GGUF from elsewhere, which stays where it is."""
    made = entry(tmp_path / "model.gguf")
    with open_target(harness.text) as target:
        target.publish(release(made), silent_log)
    assert made.gguf.read_bytes() == GOOD
    texts = [harness.blob(digest) for digest in harness.visible()["library/demo:latest"]]
    assert texts[0] == GOOD
    assert {b"Be <brief> & kind.", b"MIT", b"Apache-2.0"} < set(texts)


def test_a_target_says_what_it_has(harness: Any, publish: Callable[..., Published]) -> None:
    """What the tags name is told before a publication and after it."""
    with open_target(harness.text) as target:
        assert target.published("library", "demo", ["Q8_0", "latest"]) == {}
        publish()
        found = target.published("library", "demo", ["Q8_0", "latest", "Q2_K"])
    assert {tag: [blob.digest for blob in blobs] for tag, blobs in found.items()} == {
        tag: harness.visible()[f"library/demo:{tag}"] for tag in ("Q8_0", "latest")
    }
    assert found["Q8_0"][0].size == len(OTHER)


def test_publishing_again_changes_nothing(harness: Any, publish: Callable[..., Published]) -> None:
    """The same release twice gives the same digests."""
    first, seen = publish(), harness.visible()
    assert publish().digests == first.digests
    assert harness.visible() == seen


def test_a_new_version_replaces_the_old(harness: Any, publish: Callable[..., Published]) -> None:
    """A tag that is published again names the new bytes."""
    publish()
    publish(BETTER)
    visible = harness.visible()
    assert len(visible) == 3
    assert harness.blob(visible["library/demo:Q4_K_M"][0]) == BETTER


def test_an_error_while_writing_leaves_nothing(harness: Any) -> None:
    """Files in staging are gone when the work stops."""
    target = open_target(harness.text)

    def stop() -> None:
        with target, target.staging([4, 4]) as paths:
            for path in paths:
                path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(target.staging_folder.rglob("*sha256-*")) == []
    assert harness.visible() == {}


def test_a_file_that_is_not_its_digest_is_refused(
    harness: Any, entry: MakeEntry, release: MakeRelease, silent_log: Any, tmp_path: Path
) -> None:
    """A file is hashed on its way: where one of two is not what its digest says, none is visible."""
    good, bad = entry(tmp_path / "good.gguf"), entry(tmp_path / "bad.gguf", ("Q8_0",), OTHER)
    bad.gguf.write_bytes(OTHER.upper())
    with pytest.raises(FormatError), open_target(harness.text) as target:
        target.publish(release(good, bad), silent_log)
    assert harness.visible() == {}


def test_a_fault_hides_the_whole_release(
    harness: Any, publish: Callable[..., Published], subtests: pytest.Subtests
) -> None:
    """Where something fails half-way, what was visible stays so and nothing else is; afterwards all goes well."""
    for version, (name, fault) in enumerate(harness.faults.items()):
        with subtests.test(name):
            before = harness.visible()
            with fault(), pytest.raises(PipelineError):
                publish(b"GGUF %d" % version)
            assert harness.visible() == before
            publish(b"GGUF %d" % version)
            assert harness.blob(harness.visible()["library/demo:latest"][0]) == b"GGUF %d" % version


@pytest.mark.parametrize(
    "tags", [("Q4_K_M", "Q4_K_M"), ("latest", "Latest"), ("cloud",), ("-x",), ("a/b",)], ids="-".join
)
def test_bad_tags_are_refused_before_anything_is_written(
    harness: Any, entry: MakeEntry, release: MakeRelease, silent_log: Any, tmp_path: Path, tags: tuple[str, ...]
) -> None:
    """A name that is invalid or taken twice is a usage error, and the target stays empty."""
    made = replace(entry(tmp_path / "model.gguf"), tags=tags)
    with pytest.raises(UsageError), open_target(harness.text) as target:
        target.publish(release(made), silent_log)
    assert harness.visible() == {}


def test_every_target_has_its_test(kinds: set[str]) -> None:
    """The table of harnesses is the table of targets."""
    assert kinds == set(targets())


def test_a_text_names_one_target(harness: Any) -> None:
    """What a person writes is accepted by one kind of target alone, and its usage begins as the text does."""
    accepting = [kind for kind in targets().values() if kind.accepts(harness.text)]
    assert [harness.text.startswith(kind.usage[:2]) for kind in accepting] == [True]


@pytest.mark.parametrize("text", ["", "locale", "ftp://x", "LOCAL"])
def test_an_unknown_target_lists_the_known(text: str) -> None:
    """What nobody accepts is a usage error that names what there is."""
    with pytest.raises(UsageError, match=r"local.*ollama"):
        open_target(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:s3cret@host:5000", "https://host:5000"),
        ("ftp://me:s3@cret@host", "ftp://host"),
        ("me:s3cret@host", "host"),
        ("static:/srv/me@home", "static:/srv/me@home"),
        ("hf:org/name", "hf:org/name"),
    ],
)
def test_no_login_is_shown(text: str, shown: str) -> None:
    """What is shown of a target has no login in it, whether it is a target or not."""
    assert redacted(text) == shown
