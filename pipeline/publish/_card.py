"""The model card: README.md of a repository on the Hub, from templates/card.md.j2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from pipeline import data
from pipeline.publish._release import Release, ReleaseEntry

MARKER = "<!-- written by gguf-pipeline; a card without this line is left as it is -->"


def render_card(
    repo: str, release: Release, files: Mapping[str, ReleaseEntry], others: Mapping[str, int], licenses: Sequence[str]
) -> str:
    """Write the card of *repo*; it says nothing of times, so that the same release gives the same card.

    Args:
        repo: "org/name".
        release: what is published.
        files: its GGUF files, by their names in the repository.
        others: GGUF files that are there already, with their sizes in bytes.
        licenses: names of the licence files.
    """
    about = release.about
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701  # Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    rows = [_row(repo, name, entry, release) for name, entry in files.items()]
    rows += [_other(name, size) for name, size in sorted(others.items()) if name not in files]
    return environment.from_string((data.path("templates") / "card.md.j2").read_text(encoding="utf-8")).render(
        marker=MARKER,
        name=repo.partition("/")[2],
        base_model=about.repository,
        license=about.license,
        embedding=about.is_embedding,
        origin=_origin(release),
        files=rows,
        sampled=", in a sample of its rows" if about.is_sample else "",
        checks=[f"{_cell(check.name)}: {check.state}" + _detail(check.detail) for check in about.checks],
        notes=[_cell(note) for note in about.notes],
        license_files=", ".join(f"[{name}]({name})" for name in licenses),
    )


def _origin(release: Release) -> str:
    about = release.about
    if about.repository is None:
        return "a local checkpoint"
    at = f" at commit `{about.commit}`" if about.commit else ""
    return f"[{about.repository}](https://huggingface.co/{about.repository}){at}"


def _row(repo: str, name: str, entry: ReleaseEntry, release: Release) -> dict[str, Any]:
    recipe = entry.tags[0]
    worst = release.about.errors.get(recipe)
    return {
        "name": name,
        "recipe": recipe,
        "size": _size(entry.gguf_blob.size),
        "bits": f"{8 * entry.gguf_blob.size / entry.parameter_count:.2f}" if entry.parameter_count else "",
        "error": f"{100 * worst[0]:.2g} % ({worst[1]})" if worst else "",
        "command": _command(repo, recipe, release.about.is_embedding),
    }


def _other(name: str, size: int) -> dict[str, Any]:
    recipe = name.removesuffix(".gguf").rpartition("-")[2]
    return {"name": name, "recipe": recipe, "size": _size(size), "bits": "", "error": "", "command": ""}


def _command(repo: str, recipe: str, is_embedding: bool) -> str:
    return f"ollama {'pull' if is_embedding else 'run'} hf.co/{repo}:{recipe}"


def _size(n_bytes: int) -> str:
    """Write a size in decimal units, as the Hub does."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.2f} MB"


def _detail(text: str) -> str:
    return f" ({_cell(text)})" if text else ""


def _cell(text: str) -> str:
    """Keep a text of somebody else's from being Markdown."""
    flat = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in flat)
