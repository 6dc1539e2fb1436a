"""What a user says about a Modelfile: in models.toml, on top of it by options, checked before anything is made."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, UsageError
from pipeline.modelfile import Overrides, read_table, read_text_file
from pipeline.modelfile._go_template import check

_TABLE = """
system = "Be brief."
parameters = { temperature = 0.6, num_ctx = 8192, use_mmap = false, stop = ["<a>", "<b>"] }
messages = [{ role = "user", content = "Hi" }, { role = "assistant", content = "Hello." }]
licenses = ["MIT.txt", "more/NOTICE"]
template = "own.tmpl"
renderer = "qwen3-coder"
parser = "passthrough"
requires = "v0.34"
fim = false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the table names."""
    (tmp_path / "more").mkdir()
    (tmp_path / "MIT.txt").write_bytes(b"MIT\r\n")
    (tmp_path / "more/NOTICE").write_text("é\n", encoding="utf-8")
    (tmp_path / "own.tmpl").write_text("{{ .Prompt }}")
    return tmp_path


def test_a_table_says_everything(folder: Path) -> None:
    """Each key becomes what it means; files are read beside models.toml, with their line breaks."""
    assert read_table(tomllib.loads(_TABLE), "models.toml", folder) == Overrides(
        parameters=(
            ("temperature", 0.6), ("num_ctx", 8192), ("use_mmap", False), ("stop", "<a>"), ("stop", "<b>"),
        ),
        system="Be brief.",
        messages=(("user", "Hi"), ("assistant", "Hello.")),
        licenses=("MIT\r\n", "é\n"),
        template="{{ .Prompt }}",
        renderer="qwen3-coder",
        parser="passthrough",
        requires="v0.34",
        fim=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sytem = 'x'", "did you mean system?"),
        ("system = 1", "is not a text"),
        ("system = ''", "is not a text"),
        ("fim = 1", "neither true nor false"),
        ("parameters = ['x']", "is not a table"),
        ("parameters = { temprature = 1.0 }", "no parameter 'temprature'"),
        ("parameters = { top_k = 1.5 }", "an integer"),
        ("parameters = { top_k = [1] }", "an integer"),
        ("parameters = { typical_p = 0.9 }", "no longer supports"),
        ("messages = ['hi']", "is no message"),
        ("messages = [{ role = 'user' }]", "is no message"),
        ("messages = [{ role = 'tool', content = 'x' }]", "unknown role"),
        ("renderer = 'qwen4'", "no such renderer"),
        ("parser = 'qwen4'", "no such parser"),
        ("requires = 'new'", "not a version"),
        ("licenses = ['missing']", "cannot be read"),
        ("template = 'MIT.txt'\nlicenses = [1]", "is not a text"),
        ("nothing = [[[]]]", "unknown key"),
    ],
)
def test_a_mistake_in_the_table_is_named(folder: Path, text: str, says: str) -> None:
    """The error names the place, what is wrong, and the next step where there is one."""
    with pytest.raises(UsageError, match=says.replace("?", r"\?")) as caught:
        read_table(tomllib.loads(text), "models.toml, [mine.modelfile]", folder)
    assert "models.toml, [mine.modelfile]" in str(caught.value)


def test_the_call_wins_over_the_table() -> None:
    """What is said in the call replaces the alias's, parameters name by name; what is not said stays."""
    row = Overrides(
        parameters=(("top_k", 5), ("stop", "<a>"), ("stop", "<b>"), ("num_ctx", 1)), system="row", renderer="cohere"
    )
    said = Overrides(parameters=(("stop", "<c>"),), num_ctx=2, system="call", fim=False)
    merged = said.over(row)
    assert merged.rows() == (("top_k", 5), ("stop", "<c>"), ("num_ctx", 2))
    assert (merged.system, merged.renderer, merged.fim) == ("call", "cohere", False)
    assert Overrides().over(row) == row


@pytest.mark.parametrize(
    "wrong",
    [
        {"system": "\udcff"},
        {"parameters": (("stop", "\ud800"),)},
        {"messages": (("user", "\ud800"),)},
        {"requires": "0.34.0.1"},
        {"requires": "01.0"},
        {"requires": "1" * 200},
        {"renderer": "x"},
    ],
)
def test_what_could_not_be_stored_is_refused(wrong: dict[str, Any]) -> None:
    """Texts that are no Unicode, versions that are none and names unknown to Ollama are errors of the call."""
    with pytest.raises(UsageError):
        Overrides(**wrong).check()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain }} text",
        "{{ .Prompt }}",
        "{{- if .System -}}{{ .System }}{{- else if .X }}b{{ else }}c{{ end -}}",
        '{{ range .Messages }}{{ if eq .Role "}} {{" }}x{{ end }}{{ end }}',
        "{{/* if */}}{{ with $x := `{{` }}{{ . }}{{ end }}",
        '{{ define "a" }}{{ end }}{{ block "b" . }}{{ end }}{{ template "a" }}',
        r'{{ "\"}}" }}',
    ],
)
def test_whole_templates_pass(text: str) -> None:
    """Actions that are closed and blocks that end are a template, whatever stands in quotes and comments."""
    assert check(text, "x") == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\n{{ .Prompt", "line 2"),
        ("{{ if .A }}x", "no end"),
        ("x{{ end }}", "end }} too many"),
        ("{{ range .A }}{{ if .B }}{{ end }}", "range"),
        ("{{ .A }} {{ {{ .B }}", "not closed"),
        ("{% if x %}{{ ", "Jinja"),
    ],
)
def test_broken_templates_are_refused(text: str, says: str) -> None:
    """What Ollama could not parse when it loads the model is refused before, with the line."""
    with pytest.raises(InputError, match=says):
        check(text, "x")


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff", b"x" * 1_000_001])
def test_bad_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty, no text or huge is an error that names it."""
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--license: .*file\.txt"):
        read_text_file(path, "--license")
