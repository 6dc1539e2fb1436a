"""The chat template of a checkpoint: text that is carried over, never run here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from pipeline.errors import FormatError
from pipeline.strict_json import expect, has_file, read_optional, read_text, short
from pipeline.types import KV, ValueType, array, string

_LETTERS = frozenset(ascii_letters + digits)


@dataclass(frozen=True)
class ChatTemplates:
    """The template used without asking (None if there is none), and further ones by name, in the file's order."""

    default: str | None
    named: tuple[tuple[str, str], ...] = ()


def read_chat_templates(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplates:
    """Find the chat templates of a checkpoint.

    chat_template.jinja (with additional_chat_templates/NAME.jinja) wins over tokenizer_config.json, as in transformers;
    chat_template.json is the old place of multimodal processors.

    Raises:
        FormatError: if one is neither text nor a list of {"name", "template"}.
    """
    jinja = folder / "chat_template.jinja"
    if has_file(jinja):
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        return ChatTemplates(read_text(jinja), tuple((path.stem, read_text(path)) for path in more))
    path = folder / "tokenizer_config.json"
    entry = tokenizer_config.get("chat_template")
    if entry is None:
        path = folder / "chat_template.json"
        entry = read_optional(path).get("chat_template")
    return _templates(entry, path)


def template_keys(templates: ChatTemplates) -> tuple[KV, ...]:
    """Write the templates as tokenizer.chat_template[.NAME] and, for named ones, tokenizer.chat_templates."""
    keys: list[KV] = []
    names = [_key_name(name) for name, _ in templates.named]
    for name, (_, text) in zip(names, templates.named, strict=True):
        keys.append(string(f"tokenizer.chat_template.{name}", text))
    if names:
        keys.append(array("tokenizer.chat_templates", ValueType.STRING, names))
    if templates.default is not None:
        keys.append(string("tokenizer.chat_template", templates.default))
    return tuple(keys)


def _templates(entry: object, path: Path) -> ChatTemplates:
    if entry is None or isinstance(entry, str):
        return ChatTemplates(_checked(entry, path) if entry is not None else None)
    named: dict[str, str] = {}
    for index, item in enumerate(expect(entry, list, path, "chat_template")):
        place = f"chat_template[{index}]"
        table = expect(item, dict, path, place)
        name = expect(table.get("name"), str, path, f"{place}.name")
        if not name or _key_name(name) in map(_key_name, named):
            raise FormatError(f"{place} has a name that is empty or taken", where=path, found=short(name))
        named[name] = _checked(expect(table.get("template"), str, path, f"{place}.template"), path)
    default = named.pop("default", None)
    return ChatTemplates(default, tuple(named.items()))


def _checked(text: str, path: Path) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError("chat_template is not valid Unicode", where=path) from error
    return text


def _key_name(name: str) -> str:
    """Write a template's name with letters, digits and underscores only."""
    return "".join(c if c in _LETTERS else "_" for c in name)
