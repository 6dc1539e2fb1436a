"""Names: what is accepted, what is refused, and how a name is made of anything."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.store import Name, slug


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("demo", "localhost:11500/library/demo:latest"),
        ("demo:Q4_K_M", "localhost:11500/library/demo:Q4_K_M"),
        ("me/demo", "localhost:11500/me/demo:latest"),
        ("me/demo:v1.0", "localhost:11500/me/demo:v1.0"),
        ("localhost:5000/me/demo:x", "localhost:5000/me/demo:x"),
        ("registry.example.org/a-b_c/qwen2.5-0.5b__it:Q8_0", "registry.example.org/a-b_c/qwen2.5-0.5b__it:Q8_0"),
    ],
)
def test_a_short_name_is_completed(text: str, full: str) -> None:
    """Missing parts get their defaults, and the full name reads back as itself."""
    name = Name.parse(text)
    assert str(name) == full
    assert Name.parse(full) == name


def test_the_path_has_four_parts() -> None:
    """A manifest lies under host, namespace, model, tag, the port's colon kept."""
    assert Name.parse("me/demo:Q4_K_M").path == PurePosixPath("localhost:11500/me/demo/Q4_K_M")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":latest",
        "demo:",
        "Demo",
        "me/De",
        "Me/demo",
        "a.b/demo",
        "localhost:5000/demo",
        "a/b/c/d",
        "http://localhost:5000/a/b",
        "/demo",
        "a//b",
        "../demo",
        "a/..",
        "demo:..",
        "demo:-x",
        "demo:.x",
        "demo:a+b",
        "demo:a:b",
        "demo___x",
        "demo-",
        "-demo",
        "demo..x",
        "a--b/demo",
        "demo\n",
        "demo:x\n",
        "LOCALHOST:5000/me/demo",
        "démo",
        "x" * 81,
        "demo:" + "x" * 81,
    ],
)
def test_a_bad_name_is_refused(text: str) -> None:
    """What Ollama or a registry would reject is a usage error here."""
    with pytest.raises(UsageError):
        Name.parse(text)


@pytest.mark.parametrize("tag", ["cloud", "local", "Cloud", "120b-cloud"])
def test_reserved_tags_are_refused(tag: str) -> None:
    """Tags that Ollama reads as a place to run are not published."""
    with pytest.raises(UsageError, match="keeps this tag"):
        Name.parse(f"demo:{tag}")


def test_the_refusal_offers_a_valid_name() -> None:
    """The hint names what would be accepted."""
    with pytest.raises(UsageError, match="try 'my-model'"):
        Name.parse("My-Model")


def test_foreign_names_are_read_when_asked() -> None:
    """Models that somebody else stored keep their upper case; paths are still safe."""
    name = Name.parse("hf.co/Qwen/Qwen2.5-GGUF:Q4_K_M", strict=False)
    assert name.path == PurePosixPath("hf.co/Qwen/Qwen2.5-GGUF/Q4_K_M")
    for parts in [("..", "a", "b", "c"), ("h", "a", "b/c", "d"), ("h", "a", "..", "d"), ("h", "", "b", "c")]:
        with pytest.raises(UsageError):
            Name(*parts)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("org/My Model", "my-model"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("./checkpoints/run_7/", "run_7"),
        ("Modèle (final)", "modele-final"),
        ("__a___b--c..d__", "a-b--c-d"),
        ("x" * 79 + "-y", "x" * 79),
    ],
)
def test_slugs(text: str, made: str) -> None:
    """Repositories and folders become names by dropping the organisation and what has no place."""
    assert slug(text) == made


@pytest.mark.parametrize("text", ["", "..", "模型", "/", "---"])
def test_no_slug_of_nothing(text: str) -> None:
    """A text without a letter or digit is refused, with a way out."""
    with pytest.raises(UsageError, match="--name"):
        slug(text)


@given(st.text())
def test_every_slug_is_a_valid_model_name(text: str) -> None:
    """Whatever goes in, a slug is accepted by the strict rules and is its own slug."""
    try:
        made = slug(text)
    except UsageError:
        return
    assert Name.parse(made).model == made
    assert slug(made) == made


@given(st.text(alphabet="aZ0._-:/\n é", max_size=12))
def test_a_parsed_name_is_always_a_safe_path(text: str) -> None:
    """No accepted name leads out of the store, and it reads back as itself."""
    try:
        name = Name.parse(text)
    except UsageError:
        return
    assert len(name.path.parts) == 4
    assert all(re.match(r"[a-zA-Z0-9_]", part) for part in name.path.parts)
    assert Name.parse(str(name)) == name
