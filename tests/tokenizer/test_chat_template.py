"""Where the chat template comes from, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError
from pipeline.tokenizer.chat_template import ChatTemplates, read_chat_templates, template_keys


def test_the_jinja_file_wins(checkpoint: Callable[..., Path]) -> None:
    """chat_template.jinja counts over tokenizer_config.json, that over chat_template.json, as in transformers."""
    folder = checkpoint(chat_template={"chat_template": "old"})
    assert read_chat_templates(folder, {}).default == "old"
    assert read_chat_templates(folder, {"chat_template": "config"}).default == "config"
    (folder / "chat_template.jinja").write_text("file\n", "utf-8")
    assert read_chat_templates(folder, {"chat_template": "config"}).default == "file\n"


def test_more_files_are_named_templates(tmp_path: Path) -> None:
    """additional_chat_templates holds further templates by name, in alphabetic order."""
    (tmp_path / "chat_template.jinja").write_text("main", "utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(name, "utf-8")
    assert read_chat_templates(tmp_path, {}) == ChatTemplates("main", (("rag", "rag"), ("tool_use", "tool_use")))


def test_a_list_is_written_with_names(tmp_path: Path) -> None:
    """The default is tokenizer.chat_template, others have keys of their own and stand in tokenizer.chat_templates."""
    entry = [{"name": "default", "template": "d"}, {"name": "tool-use", "template": "t"}]
    keys = template_keys(read_chat_templates(tmp_path, {"chat_template": entry}))
    assert [(kv.key, kv.value) for kv in keys] == [
        ("tokenizer.chat_template.tool_use", "t"),
        ("tokenizer.chat_templates", ("tool_use",)),
        ("tokenizer.chat_template", "d"),
    ]


def test_no_template_is_no_key(tmp_path: Path) -> None:
    """A base model has none."""
    assert template_keys(read_chat_templates(tmp_path, {})) == ()


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {"default": "x"},
        ["x"],
        [{"name": "a"}],
        [{"template": "a"}],
        [{"name": "", "template": "a"}],
        [{"name": "a.b", "template": "1"}, {"name": "a-b", "template": "2"}],
        "\ud800",
    ],
)
def test_bad_templates_are_format_errors(tmp_path: Path, entry: Any) -> None:
    """Neither text nor a list of named texts: refused."""
    with pytest.raises(FormatError, match="chat_template"):
        read_chat_templates(tmp_path, {"chat_template": entry})


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match=r"chat_template\.jinja"):
        read_chat_templates(tmp_path, {})
